"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const classes = data.classes;
  const total = classes.count.length;
  const name = (k) => (classes.name.length ? classes.name[k] : String(k));
  const lower = Array.from({ length: total }, (_, k) => `${k} ${name(k)}`.toLowerCase());
  const accuracy = classes.count.map((n, k) => (n ? classes.correct[k] / n : -1));
  const percent = (x) => (x < 0 ? "–" : `${(100 * x).toFixed(1)} %`);
  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const image = (url, alt) => {
    const node = document.createElement("img");
    node.src = url;
    node.alt = alt;
    node.loading = "lazy";
    return node;
  };
  const pen = $("matrix").getContext("2d");
  const font = (size) => `${size}px system-ui, "Noto Sans CJK SC", sans-serif`;
  const measure = (text) => pen.measureText(text).width;
  const matches = (text, words) => words.every((word) => text.includes(word));
  const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

  /* As utils/text.py: make visible what a path hides, and bytes that are not UTF-8 (lone surrogates). */
  const hidden = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\p{Surrogate}/gu;
  const hex = (code, length) => code.toString(16).padStart(length, "0");
  const byteOf = (letter) => (letter >= "\udc80" && letter <= "\udcff" ? letter.charCodeAt(0) - 0xdc00 : -1);
  const visible = (text) => text.replace(hidden, (letter) => {
    const code = byteOf(letter) >= 0 ? byteOf(letter) : letter.charCodeAt(0);
    return code === 13 ? "\\r" : code < 256 ? `\\x${hex(code, 2)}` : `\\u${hex(code, 4)}`;
  });
  /* As utils/names.py: shorten names in the middle; equal results get their class number in front. Pixels, in the font of `pen`. */
  function shorten(text, room) {
    if (measure(text) <= room) return text;
    const letters = Array.from(new Intl.Segmenter().segment(text), (one) => one.segment);
    const kept = (n) => `${letters.slice(0, n - (n >> 1)).join("")}…${letters.slice(letters.length - (n >> 1)).join("")}`;
    let low = 0;
    let high = letters.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (measure(kept(middle)) <= room) low = middle;
      else high = middle - 1;
    }
    return kept(low);
  }
  function shortenAll(labels, room, called = name) {
    const found = new Map(labels.map((k) => [k, shorten(called(k), room)]));
    const times = new Map();
    for (const text of found.values()) times.set(text, (times.get(text) || 0) + 1);
    for (const [k, text] of found) {
      if (times.get(text) > 1) found.set(k, `${k}: ${shorten(called(k), room - measure(`${k}: `))}`);
    }
    return found;
  }

  /* A pager; `show(first, end)` draws the items of its current page. */
  function pager(box, size, show) {
    let at = 0;
    let count = 0;
    const back = make("button", "‹ Back");
    const next = make("button", "Next ›");
    const where = make("span", "", "soft small");
    for (const button of [back, next]) button.type = "button";
    box.append(back, where, next);
    const draw = () => {
      at = Math.max(0, Math.min(at, Math.ceil(count / size) - 1));
      back.disabled = at === 0;
      next.disabled = (at + 1) * size >= count;
      where.textContent = count ? `page ${at + 1} of ${Math.ceil(count / size)}` : "nothing to show";
      show(at * size, Math.min((at + 1) * size, count));
    };
    const turn = (by) => { at += by; draw(); };
    back.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    return { reset(n) { count = n; at = 0; draw(); }, turn };
  }

  /* ------------------------------------------------------------------ classes */
  const columns = [
    ["class", (k) => k, String],
    ["name", (k) => name(k), String],
    ["accuracy", (k) => accuracy[k], percent],
    ["train images", (k) => classes.train[k], String],
    ["images", (k) => classes.count[k], String],
    ["predicted", (k) => classes.predicted[k], String],
    ["correct", (k) => classes.correct[k], String],
  ].filter(([title]) => (title !== "train images" || classes.train.length) && (title !== "name" || classes.name.length));
  let order = { column: columns.findIndex(([title]) => title === "accuracy"), down: false };
  let shown = [];
  const body = $("class-table").tBodies[0];
  const classPager = pager($("class-pager"), 50, (first, end) => {
    body.replaceChildren(...shown.slice(first, end).map((k) => {
      const row = make("tr");
      columns.forEach(([title, get, text]) => {
        const cell = make("td", undefined, title === "name" ? "" : "number");
        if (title === "accuracy" && accuracy[k] >= 0) {
          const meter = make("span", undefined, "meter");
          const fill = make("i");
          fill.style.width = `${100 * accuracy[k]}%`;
          meter.append(fill);
          cell.append(meter);
        }
        cell.append(text(get(k)));
        row.append(cell);
      });
      return row;
    }));
  });
  function refill() {
    const words = wordsOf($("class-filter"));
    const seen = $("class-seen").checked;
    shown = [];
    for (let k = 0; k < total; k++) {
      if ((!seen || classes.count[k]) && matches(lower[k], words)) shown.push(k);
    }
    const get = columns[order.column][1];
    const sign = order.down ? -1 : 1;
    const collate = new Intl.Collator(undefined, { numeric: true }).compare;
    const textual = columns[order.column][0] === "name";
    const isAccuracy = columns[order.column][0] === "accuracy";
    shown.sort((a, b) => {
      const [x, y] = [get(a), get(b)];
      if (isAccuracy && (x < 0) !== (y < 0)) return x < 0 ? 1 : -1; // classes without images come last in both orders
      return sign * (textual ? collate(x, y) : x - y) || a - b;
    });
    $("class-count").textContent = `${shown.length.toLocaleString("en")} of ${total.toLocaleString("en")}`;
    classPager.reset(shown.length);
  }
  columns.forEach(([title], place) => {
    const head = make("th", undefined, title === "name" ? "" : "number");
    head.scope = "col";
    const button = make("button", title);
    button.type = "button";
    button.addEventListener("click", () => {
      order = { column: place, down: order.column === place ? !order.down : title !== "name" && title !== "class" && title !== "accuracy" };
      mark();
      refill();
    });
    head.append(button);
    $("class-table").tHead.rows[0].append(head);
  });
  function mark() {
    [...$("class-table").tHead.rows[0].cells].forEach((head, place) => {
      if (place === order.column) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }
  $("class-filter").addEventListener("input", refill);
  $("class-seen").addEventListener("change", refill);
  mark();
  refill();

  /* ------------------------------------------------------------------ confusion: pairs */
  const [truth, called, often] = data.pairs.length ? data.pairs : [[], [], []];
  function pairs() {
    const words = wordsOf($("pair-search"));
    const rows = [];
    let found = 0;
    const good = words.length ? lower.map((text) => matches(text, words)) : null;
    for (let i = 0; i < truth.length; i++) {
      if (good && !good[truth[i]] && !good[called[i]]) continue;
      if (found++ >= 50) continue;
      const row = make("tr");
      const share = make("td", percent(often[i] / classes.count[truth[i]]), "number");
      row.append(make("td", name(truth[i])), make("td", name(called[i])), make("td", String(often[i]), "number"), share);
      rows.push(row);
    }
    $("pairs").tBodies[0].replaceChildren(...rows);
    $("pair-count").textContent = found > 50 ? `50 most frequent of ${found.toLocaleString("en")} pairs` : `${found} pairs`;
  }
  $("pair-search").addEventListener("input", () => {
    pairs();
    const words = wordsOf($("pair-search"));
    const hit = words.length ? lower.findIndex((text) => matches(text, words)) : -1;
    if (hit >= 0 && total > 40) { view = { x: hit - 10, y: hit - 10, span: 20 }; draw(); }
  });
  pairs();

  /* ------------------------------------------------------------------ confusion: matrix */
  const canvas = $("matrix");
  const readable = 9; // pixels; names of smaller cells would overlap
  let view = { x: 0, y: 0, span: total };
  let place = { margin: 0, cell: 1 }; // of the drawing, in pixels
  let pointed = null; // the cell under the pointer
  const cells = new Map();
  truth.forEach((y, i) => cells.set(y * total + called[i], often[i]));
  function inView(low) {
    const first = Math.max(0, Math.floor(low));
    return Array.from({ length: Math.max(0, Math.min(total, Math.ceil(low + view.span)) - first) }, (_, k) => first + k);
  }
  /* Return the names of the classes in view and the margin that they need, or null if the cells would be too small. */
  function names(side) {
    const maxMargin = side * 0.34;
    if ((side - maxMargin) / view.span < readable) return null;
    pen.font = font(Math.max(9, Math.min(12, ((side - maxMargin) / view.span) * 0.9)));
    const down = inView(view.y);
    const across = inView(view.x);
    const found = shortenAll([...new Set([...down, ...across])], maxMargin - 10);
    const widest = (labels) => Math.max(0, ...labels.map((k) => measure(found.get(k)))) + 10;
    const margin = Math.min(maxMargin, Math.max(widest(down), widest(across)));
    return { found, down, across, margin, font: pen.font };
  }
  function draw() {
    const side = canvas.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(side * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.documentElement);
    const colour = (key) => style.getPropertyValue(key).trim();
    view.span = Math.max(Math.min(4, total), Math.min(total, view.span));
    view.x = Math.max(0, Math.min(total - view.span, view.x));
    view.y = Math.max(0, Math.min(total - view.span, view.y));
    const named = names(side);
    const margin = named ? named.margin : 0;
    const cell = (side - margin) / view.span;
    const heat = colour("--heat");
    const wrong = colour("--wrong");
    const minSide = Math.max(1.5, cell);
    const count = (n) => (n < 10000 ? String(n) : `${Math.round(n / 1000)}k`);
    place = { margin, cell };
    pen.clearRect(0, 0, side, side);
    pen.save();
    pen.beginPath();
    pen.rect(margin, margin, side - margin, side - margin);
    pen.clip();
    if (cell >= readable) grid(margin, cell, side, colour("--line"));
    const dot = (y, x, images, tint) => {
      const share = Math.min(1, images / Math.max(1, classes.count[y]));
      pen.fillStyle = `rgba(${tint}, ${0.12 + 0.88 * share})`;
      pen.fillRect(margin + (x - view.x) * cell, margin + (y - view.y) * cell, minSide, minSide);
      pen.font = font(Math.min(13, cell / 2.2));
      if (cell > 17 && measure(count(images)) < cell - 2) {
        pen.fillStyle = share > 0.5 ? colour("--card") : colour("--ink");
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        pen.fillText(count(images), margin + (x - view.x + 0.5) * cell, margin + (y - view.y + 0.5) * cell);
      }
    };
    const inside = (v, low) => v > low - 1 && v < low + view.span;
    for (const k of inView(view.y)) {
      if (classes.correct[k] && inside(k, view.x)) dot(k, k, classes.correct[k], heat);
    }
    for (let i = 0; i < truth.length; i++) {
      if (inside(truth[i], view.y) && inside(called[i], view.x)) dot(truth[i], called[i], often[i], wrong);
    }
    pen.restore();
    if (named) labels(named, cell, side, colour("--ink"), colour("--soft"));
    const last = (v) => Math.min(total, Math.ceil(v + view.span)) - 1;
    $("window").textContent = `rows ${Math.floor(view.y)}–${last(view.y)}, columns ${Math.floor(view.x)}–${last(view.x)}`;
  }
  function grid(margin, cell, side, colour) {
    pen.strokeStyle = colour;
    pen.lineWidth = 0.5;
    pen.beginPath();
    for (const k of inView(view.x)) {
      pen.moveTo(margin + (k - view.x) * cell, margin);
      pen.lineTo(margin + (k - view.x) * cell, side);
    }
    for (const k of inView(view.y)) {
      pen.moveTo(margin, margin + (k - view.y) * cell);
      pen.lineTo(side, margin + (k - view.y) * cell);
    }
    pen.stroke();
  }
  function labels(named, cell, side, ink, soft) {
    const { margin, found } = named;
    pen.font = named.font;
    pen.textBaseline = "middle";
    const middle = (k, low) => margin + (k - low + 0.5) * cell;
    for (const k of named.down) {
      pen.fillStyle = pointed && pointed.y === k ? ink : soft;
      pen.textAlign = "right";
      const at = middle(k, view.y);
      if (at > margin && at < side) pen.fillText(found.get(k), margin - 5, at);
    }
    for (const k of named.across) {
      const at = middle(k, view.x);
      if (at < margin || at > side) continue;
      pen.fillStyle = pointed && pointed.x === k ? ink : soft;
      pen.save();
      pen.translate(at, margin - 5);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(found.get(k), 0, 0);
      pen.restore();
    }
  }
  function zoom(by, atX = 0.5, atY = 0.5) {
    const span = Math.max(Math.min(4, total), Math.min(total, view.span * by));
    view = { x: view.x + (view.span - span) * atX, y: view.y + (view.span - span) * atY, span };
    draw();
  }
  const move = (dx, dy) => { view.x += dx * view.span; view.y += dy * view.span; draw(); };
  $("zoom-in").addEventListener("click", () => zoom(0.5));
  $("zoom-out").addEventListener("click", () => zoom(2));
  $("zoom-all").addEventListener("click", () => { view = { x: 0, y: 0, span: total }; draw(); });
  canvas.addEventListener("keydown", (event) => {
    const act = {
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "0": () => zoom(total),
      ArrowLeft: () => move(-0.2, 0), ArrowRight: () => move(0.2, 0), ArrowUp: () => move(0, -0.2), ArrowDown: () => move(0, 0.2),
    }[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { act(); event.preventDefault(); }
  });
  /* Return the position of an event on the canvas, in pixels. */
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return { left: event.clientX - box.left - canvas.clientLeft, top: event.clientY - box.top - canvas.clientTop };
  };
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // without the focus, the wheel scrolls the page
    const { left, top } = at(event);
    const share = (v) => Math.max(0, v - place.margin) / (canvas.clientWidth - place.margin);
    zoom(event.deltaY > 0 ? 1.25 : 0.8, share(left), share(top));
    event.preventDefault();
  }, { passive: false });
  let grip = null;
  canvas.addEventListener("pointerdown", (event) => {
    grip = { x: event.clientX, y: event.clientY };
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    point(at(event));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { grip = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) {
      point(at(event));
      return;
    }
    view.x -= (event.clientX - grip.x) / place.cell;
    view.y -= (event.clientY - grip.y) / place.cell;
    grip = { x: event.clientX, y: event.clientY };
    $("tip").hidden = true;
    draw();
  });
  canvas.addEventListener("pointerleave", () => point({ left: -1, top: -1 }));
  /* Describe the cell at (left, top) of the canvas, below the canvas and beside the pointer. */
  function point({ left, top }) {
    const x = Math.floor(view.x + (left - place.margin) / place.cell);
    const y = Math.floor(view.y + (top - place.margin) / place.cell);
    const there = left >= place.margin && top >= place.margin && x < total && y < total;
    const tip = $("tip");
    tip.hidden = !there;
    const before = pointed;
    pointed = there ? { x, y } : null;
    if (place.cell >= readable && (before && `${before.x},${before.y}`) !== (pointed && `${x},${y}`)) draw();
    if (!there) return;
    const count = x === y ? classes.correct[x] : cells.get(y * total + x) || 0;
    const text = `True ${name(y)}, predicted ${name(x)}: ${count} of ${classes.count[y]} images.`;
    $("cell").textContent = text;
    tip.textContent = text;
    const right = left > canvas.clientWidth / 2;
    tip.style.left = right ? "" : `${left + 14}px`;
    tip.style.right = right ? `${canvas.clientWidth - left + 14}px` : "";
    const low = top > canvas.clientHeight / 2;
    tip.style.top = low ? "" : `${top + 14}px`;
    tip.style.bottom = low ? `${canvas.clientHeight - top + 14}px` : "";
  }
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  /* ------------------------------------------------------------------ errors */
  const frame = (url, alt) => {
    const box = make("div", undefined, "frame");
    box.append(url ? image(url, alt) : make("span", alt.startsWith("Grad") ? "no Grad-CAM" : "no picture", "soft small"));
    return box;
  };
  const nearOf = (images, right, wrong) => {
    const near = make("div", undefined, "near");
    for (const [url, label, cosine] of images) {
      const one = make("figure");
      const words = cosine === null ? label : `${label} ${cosine.toFixed(2)}`;
      one.append(image(url, cosine === null ? `a correct image of class ${label}` : `a neighbour of class ${label}`));
      one.append(make("figcaption", words, label === right ? "good" : label === wrong ? "error" : ""));
      near.append(one);
    }
    return near;
  };
  const errorCard = (card) => {
    const item = make("article", undefined, "item");
    const pair = make("div", undefined, "pair");
    pair.append(frame(card.picture, `of class ${card.label}`), frame(card.cam, "Grad-CAM"));
    const said = make("div");
    said.append(make("strong", card.label), " predicted as ", make("strong", card.called, "error"));
    const top = make("div", undefined, "top");
    for (const [label, p] of card.top) top.append(make("span", label, label === card.label ? "good" : ""), make("span", percent(p), "number"));
    if (!card.top.some(([label]) => label === card.label)) top.append(make("span", `${card.label} (true)`, "good"), make("span", percent(card.true), "number"));
    item.append(pair, said, top);
    if (card.near.length) item.append(nearOf(card.near, card.label, card.called));
    item.append(make("div", visible(card.path), "path soft"));
    return item;
  };
  let errors = [];
  const errorPager = pager($("error-pager"), 12, (first, end) => $("gallery").replaceChildren(...errors.slice(first, end).map(errorCard)));
  function listErrors() {
    const words = wordsOf($("error-filter"));
    errors = data.errors.filter((card) => matches(`${card.label} ${card.called}`.toLowerCase(), words));
    errors.sort((a, b) => ($("error-order").value === "sure" ? b.sure - a.sure : a.sure - b.sure));
    $("error-count").textContent = `${errors.length} of ${data.errors.length}`;
    errorPager.reset(errors.length);
  }
  $("error-filter").addEventListener("input", listErrors);
  $("error-order").addEventListener("change", listErrors);
  $("gallery").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { errorPager.turn(by); event.preventDefault(); }
  });
  listErrors();

  /* ------------------------------------------------------------------ labels */
  const marks = data.issues.map((card) => ({ action: "", to: card.choices.length ? card.choices[0][0] : card.label }));
  const said = () => {
    const count = marks.filter((one) => one.action).length;
    $("marked").textContent = `${count} of ${marks.length} marked`;
    $("export").disabled = !count;
  };
  const issueCard = (card, k) => {
    const item = make("article", undefined, "item");
    const text = make("div");
    text.append("Labelled ", make("strong", card.name), `; the network gives it ${percent(card.quality)}.`);
    const group = make("fieldset", undefined, "marks");
    for (const action of ["keep", "drop", "relabel"]) {
      const radio = document.createElement("input");
      radio.type = "radio";
      radio.name = `issue-${k}`;
      radio.value = action;
      radio.checked = marks[k].action === action;
      radio.addEventListener("change", () => { marks[k].action = action; said(); });
      const label = make("label");
      label.append(radio, ` ${action}`);
      group.append(label);
    }
    const select = document.createElement("select");
    select.setAttribute("aria-label", "new label");
    pen.font = font(14.4);
    const titles = new Map(card.choices);
    const short = shortenAll([...titles.keys()], 240, (k) => titles.get(k)); // a browser would cut off the end, in which names differ
    for (const [value, title] of card.choices) {
      const option = new Option(`to ${short.get(value)}`, value, false, value === marks[k].to);
      option.title = title;
      select.append(option);
    }
    select.addEventListener("change", () => {
      marks[k] = { action: "relabel", to: Number(select.value) };
      group.querySelector("[value=relabel]").checked = true;
      said();
    });
    group.append(select);
    item.append(frame(card.picture, `labelled ${card.name}`), text, group);
    if (card.near.length) item.append(nearOf(card.near, card.name, card.choices.length ? card.choices[0][1] : ""));
    item.append(make("div", visible(card.path), "path soft"));
    return item;
  };
  pager($("issue-pager"), 12, (first, end) => {
    $("issues").replaceChildren(...data.issues.slice(first, end).map((card, k) => issueCard(card, first + k)));
  }).reset(data.issues.length);
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  $("export").addEventListener("click", () => {
    const rows = [["path", "label", "action", "new_label"]];
    data.issues.forEach((card, k) => {
      if (marks[k].action) rows.push([card.path, card.label, marks[k].action, marks[k].action === "relabel" ? marks[k].to : ""]);
    });
    const text = rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    // bytes of a path that are not UTF-8 are written unchanged
    const parts = Array.from(text, (letter) => (byteOf(letter) >= 0 ? new Uint8Array([byteOf(letter)]) : letter));
    link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
    link.download = "label_decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  said();
})();
