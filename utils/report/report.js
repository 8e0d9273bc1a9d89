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
  const matches = (text, words) => words.every((word) => text.includes(word));
  const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

  /* A pager: `show(first)` draws the page that begins at item `first`. */
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
      if (isAccuracy && (x < 0) !== (y < 0)) return x < 0 ? 1 : -1; // without images: last, either way
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
    $("pair-count").textContent = found > 50 ? `the worst 50 of ${found.toLocaleString("en")} pairs` : `${found} pairs`;
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
  const pen = canvas.getContext("2d");
  let view = { x: 0, y: 0, span: total };
  const cells = new Map();
  truth.forEach((y, i) => cells.set(y * total + called[i], often[i]));
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
    const named = view.span <= 30;
    const margin = named ? Math.min(110, side * 0.26) : 0;
    const cell = (side - margin) / view.span;
    const heat = colour("--heat");
    const wrong = colour("--wrong");
    const least = Math.max(1.5, cell);
    pen.clearRect(0, 0, side, side);
    pen.save();
    pen.beginPath();
    pen.rect(margin, margin, side - margin, side - margin);
    pen.clip();
    const dot = (y, x, count, tint) => {
      const share = count / Math.max(1, classes.count[y]);
      pen.fillStyle = `rgba(${tint}, ${0.12 + 0.88 * Math.min(1, share)})`;
      pen.fillRect(margin + (x - view.x) * cell, margin + (y - view.y) * cell, least, least);
      if (named && cell > 17) {
        pen.fillStyle = share > 0.5 ? colour("--card") : colour("--ink");
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        pen.font = `${Math.min(13, cell / 2.6)}px system-ui, sans-serif`;
        pen.fillText(String(count), margin + (x - view.x + 0.5) * cell, margin + (y - view.y + 0.5) * cell);
      }
    };
    const inside = (v, low) => v > low - 1 && v < low + view.span;
    for (let k = Math.max(0, Math.floor(view.y)); k < Math.min(total, view.y + view.span); k++) {
      if (classes.correct[k] && inside(k, view.x)) dot(k, k, classes.correct[k], heat);
    }
    for (let i = 0; i < truth.length; i++) {
      if (inside(truth[i], view.y) && inside(called[i], view.x)) dot(truth[i], called[i], often[i], wrong);
    }
    pen.restore();
    if (named) labels(margin, cell, side, colour("--soft"));
    const last = (v) => Math.min(total, Math.ceil(v + view.span)) - 1;
    $("window").textContent = `rows ${Math.floor(view.y)}–${last(view.y)}, columns ${Math.floor(view.x)}–${last(view.x)}`;
  }
  function labels(margin, cell, side, colour) {
    const letters = Math.floor(margin / 6.2);
    const short = (k) => (name(k).length > letters ? `${name(k).slice(0, letters - 1)}…` : name(k));
    pen.fillStyle = colour;
    pen.font = `${Math.max(8, Math.min(11, cell))}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    for (let k = Math.ceil(view.y - 0.5); k < Math.min(total, view.y + view.span); k++) {
      pen.textAlign = "right";
      const at = margin + (k - view.y + 0.5) * cell;
      if (at > margin && at < side) pen.fillText(short(k), margin - 5, at);
    }
    for (let k = Math.ceil(view.x - 0.5); k < Math.min(total, view.x + view.span); k++) {
      const at = margin + (k - view.x + 0.5) * cell;
      if (at < margin || at > side) continue;
      pen.save();
      pen.translate(at, margin - 5);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(short(k), 0, 0);
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
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // the page scrolls, until the matrix was clicked
    const box = canvas.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    event.preventDefault();
  }, { passive: false });
  let grip = null;
  canvas.addEventListener("pointerdown", (event) => {
    grip = { x: event.clientX, y: event.clientY };
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { grip = null; });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    if (grip) {
      view.x -= ((event.clientX - grip.x) / box.width) * view.span;
      view.y -= ((event.clientY - grip.y) / box.height) * view.span;
      grip = { x: event.clientX, y: event.clientY };
      draw();
      return;
    }
    const margin = view.span <= 30 ? Math.min(110, box.width * 0.26) : 0;
    const scale = view.span / (box.width - margin);
    const x = Math.floor(view.x + (event.clientX - box.left - margin) * scale);
    const y = Math.floor(view.y + (event.clientY - box.top - margin) * scale);
    if (x < 0 || y < 0 || x >= total || y >= total || event.clientX - box.left < margin || event.clientY - box.top < margin) return;
    const count = x === y ? classes.correct[x] : cells.get(y * total + x) || 0;
    $("cell").textContent = `True ${name(y)}, called ${name(x)}: ${count} of ${classes.count[y]} images.`;
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  /* ------------------------------------------------------------------ errors */
  const frame = (url, alt) => {
    const box = make("div", undefined, "frame");
    box.append(url ? image(url, alt) : make("span", alt.startsWith("Grad") ? "no Grad-CAM" : "no picture", "soft small"));
    return box;
  };
  const errorCard = (card) => {
    const item = make("article", undefined, "item");
    const pair = make("div", undefined, "pair");
    pair.append(frame(card.picture, `of class ${card.label}`), frame(card.cam, "Grad-CAM"));
    const said = make("div");
    said.append(make("strong", card.label), " called ", make("strong", card.called, "error"));
    const top = make("div", undefined, "top");
    for (const [label, p] of card.top) top.append(make("span", label, label === card.label ? "good" : ""), make("span", percent(p), "number"));
    if (!card.top.some(([label]) => label === card.label)) top.append(make("span", `${card.label} (true)`, "good"), make("span", percent(card.true), "number"));
    item.append(pair, said, top);
    if (card.near.length) {
      const near = make("div", undefined, "near");
      for (const [url, label, cosine] of card.near) {
        const one = make("figure");
        const words = cosine === null ? label : `${label} ${cosine.toFixed(2)}`;
        one.append(image(url, cosine === null ? `a right ${label}` : `a neighbour of class ${label}`));
        one.append(make("figcaption", words, label === card.label ? "good" : label === card.called ? "error" : ""));
        near.append(one);
      }
      item.append(near);
    }
    item.append(make("div", card.path, "path soft"));
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
    for (const [value, title] of card.choices) select.append(new Option(`to ${title}`, value, false, value === marks[k].to));
    select.addEventListener("change", () => {
      marks[k] = { action: "relabel", to: Number(select.value) };
      group.querySelector("[value=relabel]").checked = true;
      said();
    });
    group.append(select);
    item.append(frame(card.picture, `labelled ${card.name}`), text, group, make("div", card.path, "path soft"));
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
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "label_decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  said();
})();
