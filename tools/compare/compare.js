"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  /* ------------------------------------------------------------------ one colour and dash per run */
  const palette = ["#4a90d9", "#d9822b", "#3a9d5d", "#c94f7c", "#8a63d2", "#b59a00", "#18a0a8", "#8c6d5a"];
  const dashes = ["", "6 3", "2 3", "9 3 2 3"];
  const colour = (k) => (data.length <= palette.length ? palette[k] : `hsl(${(k * 137.5) % 360} 60% 50%)`);
  const dash = (k) => (data.length <= palette.length ? "" : dashes[k % dashes.length]);
  const rows = [...$("runs").tBodies[0].rows];
  const boxes = rows.map((row) => row.querySelector("input"));
  rows.forEach((row, k) => {
    const line = row.querySelector(".swatch path");
    line.setAttribute("stroke", colour(k));
    line.setAttribute("stroke-dasharray", dash(k));
  });

  /* ------------------------------------------------------------------ table */
  const collate = new Intl.Collator(undefined, { numeric: true }).compare;
  const heads = [...$("runs").tHead.rows[0].cells];
  const value = (k, column) => rows[k].cells[column].dataset.value;
  const unknown = (text) => text === "" || text === "–";
  function sortBy(column) {
    const head = heads[column];
    const sorted = head.getAttribute("aria-sort");
    const down = sorted ? sorted === "ascending" : head.classList.contains("down");
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numbers = rows.every((_, k) => unknown(value(k, column)) || Number.isFinite(Number(value(k, column))));
    const order = rows.map((_, k) => k).sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (unknown(x) || unknown(y)) return unknown(x) - unknown(y) || a - b; // last in both orders
      return (down ? -1 : 1) * (numbers ? x - y : collate(x, y)) || a - b;
    });
    $("runs").tBodies[0].append(...order.map((k) => rows[k]));
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  function filter() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, k) => {
      row.hidden = !words.every((word) => texts[k].includes(word));
      shown += !row.hidden;
    });
    $("count").textContent = `${shown} of ${rows.length} runs`;
    plotAll();
  }
  $("filter").addEventListener("input", filter);
  for (const [id, on] of [["all", true], ["none", false]]) {
    $(id).addEventListener("click", () => {
      boxes.forEach((box, k) => { if (!rows[k].hidden) box.checked = on; });
      plotAll();
    });
  }
  for (const box of boxes) box.addEventListener("change", plotAll);
  rows.forEach((row, k) => {
    row.addEventListener("pointerenter", () => point(k));
    row.addEventListener("pointerleave", () => point(-1));
    boxes[k].addEventListener("focus", () => point(k));
    boxes[k].addEventListener("blur", () => point(-1));
  });

  /* ------------------------------------------------------------------ curves */
  const left = 58, right = 470, top = 8, bottom = 236;
  const figures = [...document.querySelectorAll(".panels figure")].map((node) => ({ node, svg: node.querySelector("svg"), name: node.dataset.name, lines: [] }));
  const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3 ? v.toExponential(1).replace("e+", "e").replace(".0e", "e") : String(Number(v.toPrecision(3))));
  /* Return round numbers within [low, high]. */
  function ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step || 0); // no -0
    return found;
  }
  /* Return powers of ten, and also 2 and 5 times each where there are few. */
  function logTicks(low, high) {
    const found = [];
    const factors = Math.log10(high / low) < 2 ? [1, 2, 5] : [1];
    for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; k++) for (const by of factors) if (by * 10 ** k >= low && by * 10 ** k <= high) found.push(by * 10 ** k);
    return found.length > 1 ? found.filter((_, k) => k % Math.ceil(found.length / 7) === 0) : [low, high];
  }
  /* Return the points of a curve, and how many a logarithmic axis has no room for. */
  function points(k, name, log) {
    const part = name.startsWith("val_") ? data[k].val : data[k].train;
    const xs = part[$("axis").value];
    const all = [];
    part[name].forEach((y, i) => {
      if (xs[i] !== null && y !== null) all.push([xs[i], y, part.epoch[i], part.step[i]]);
    });
    const found = log ? all.filter(([, y]) => y > 0) : all;
    return [smoothed(found, name), all.length - found.length];
  }
  function smoothed(found, name) {
    return $("smooth").checked && name !== "lr" && !name.startsWith("val_") ? smooth(found) : found;
  }
  /* Return points whose y is the mean of a twentieth of the curve around them. */
  function smooth(found) {
    const reach = Math.floor(found.length / 40);
    const sums = [0];
    for (const [, y] of found) sums.push(sums[sums.length - 1] + y);
    return found.map(([x, , ...rest], i) => {
      const [first, end] = [Math.max(0, i - reach), Math.min(found.length, i + reach + 1)];
      return [x, (sums[end] - sums[first]) / (end - first), ...rest];
    });
  }
  function plot(figure) {
    const { svg, name } = figure;
    const log = $("log").checked && !name.endsWith("top1");
    svg.replaceChildren();
    figure.lines = [];
    let missing = 0;
    data.forEach((_, k) => {
      if (!boxes[k].checked || rows[k].hidden) return;
      const [found, below] = points(k, name, log);
      missing += below;
      if (found.length) figure.lines.push({ k, found });
    });
    const below = missing ? `${missing} point${missing > 1 ? "s" : ""} at 0 or below not shown` : "";
    const all = figure.lines.flatMap((line) => line.found);
    if (!all.length) {
      svg.append(draw("text", { x: (left + right) / 2, y: (top + bottom) / 2, "text-anchor": "middle" }, below || "nothing to draw"));
      return;
    }
    let [xLow, xHigh, yLow, yHigh] = [0, -Infinity, Infinity, -Infinity];
    for (const [x, y] of all) {
      xHigh = Math.max(xHigh, x);
      yLow = Math.min(yLow, y);
      yHigh = Math.max(yHigh, y);
    }
    if (yLow === yHigh) [yLow, yHigh] = [yLow * 0.9 || -0.1, yHigh * 1.1 || 0.1];
    const pad = log ? 0 : 0.04 * (yHigh - yLow);
    [yLow, yHigh] = [yLow - pad, yHigh + pad];
    const along = (x) => left + ((x - xLow) / (xHigh - xLow || 1)) * (right - left);
    const height = log ? (y) => Math.log(y / yLow) / Math.log(yHigh / yLow) : (y) => (y - yLow) / (yHigh - yLow);
    const up = (y) => bottom - height(y) * (bottom - top);
    for (const y of log ? logTicks(yLow, yHigh) : ticks(yLow, yHigh, 5)) {
      svg.append(draw("line", { x1: left, x2: right, y1: up(y), y2: up(y), class: "grid" }));
      svg.append(draw("text", { x: left - 6, y: up(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of ticks(xLow, xHigh, 6)) svg.append(draw("text", { x: along(x), y: bottom + 16, "text-anchor": "middle" }, x.toLocaleString("en", { maximumFractionDigits: 3 })));
    svg.append(draw("text", { x: (left + right) / 2, y: bottom + 31, "text-anchor": "middle" }, $("axis").value + (below && `; ${below}`)));
    for (const line of figure.lines) {
      const group = draw("g", { "data-run": line.k });
      line.at = line.found.map(([x, y]) => [along(x), up(y)]);
      if (line.at.length > 1) group.append(draw("path", { d: `M${line.at.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`, stroke: colour(line.k), "stroke-dasharray": dash(line.k) }));
      if (line.at.length <= 30) for (const [x, y] of line.at) group.append(draw("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: line.at.length > 1 ? 2.4 : 4, fill: colour(line.k) }));
      svg.append(group);
    }
  }
  function plotAll() {
    rows.forEach((row, k) => row.classList.toggle("off", !boxes[k].checked));
    figures.forEach(plot);
  }
  /* Make run k stand out in all panels; -1: none. */
  function point(k) {
    rows.forEach((row, other) => row.classList.toggle("pointed", other === k));
    for (const { svg, lines } of figures) {
      svg.classList.toggle("some", lines.some((line) => line.k === k));
      for (const group of svg.querySelectorAll("g")) group.classList.toggle("pointed", Number(group.dataset.run) === k);
    }
  }
  const digits = (v) => (v === null ? "" : String(Number(v.toPrecision(5))));
  function nearest(figure, x, y) {
    let best = { far: 24 ** 2 };
    for (const line of figure.lines) {
      line.at.forEach(([px, py], i) => {
        const far = (px - x) ** 2 + (py - y) ** 2;
        if (far < best.far) best = { far, k: line.k, of: line.found[i] };
      });
    }
    return best;
  }
  for (const figure of figures) {
    figure.svg.addEventListener("pointermove", (event) => {
      const box = figure.svg.getBoundingClientRect();
      const by = 480 / box.width;
      const best = nearest(figure, (event.clientX - box.left) * by, (event.clientY - box.top) * by);
      point(best.k === undefined ? -1 : best.k);
      $("tip").hidden = best.k === undefined;
      if (best.k === undefined) return;
      const [, y, epoch, step] = best.of;
      $("tip").textContent = `${data[best.k].tag}: ${digits(y)} at epoch ${digits(epoch)}${step === null ? "" : `, step ${Math.round(step).toLocaleString("en")}`}`;
      const low = event.clientX > innerWidth / 2;
      $("tip").style.transform = `translate(calc(${event.clientX + (low ? -14 : 14)}px${low ? " - 100%" : ""}), ${event.clientY + 14}px)`;
    });
    figure.svg.addEventListener("pointerleave", () => { point(-1); $("tip").hidden = true; });
  }
  for (const id of ["axis", "smooth", "log"]) $(id).addEventListener("change", plotAll);
  const steps = data.length > 0 && data.every((run) => run.train.step.every((step) => step !== null));
  $("axis").querySelector("[value=step]").disabled = !data.some((run) => run.train.step.some((step) => step !== null));
  if (steps && data.every((run) => !run.val.epoch.length || run.val.epoch[run.val.epoch.length - 1] <= 1)) $("axis").value = "step";
  filter();
})();
