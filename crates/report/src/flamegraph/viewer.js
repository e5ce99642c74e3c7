"use strict";
// Redraws the graph at the window's width, zooms, searches. Without it the picture is still complete, but fixed.
// `data` = { names: [[name, place, class]...], boxes: [depth, name, value, own, ...], total, bytes }.
(() => {
  const SVG = "http://www.w3.org/2000/svg", HTML = "http://www.w3.org/1999/xhtml";
  const ROW = 18, TOP = 96, MARGIN = 10, CHAR = 7.25, NARROWEST = 0.8;
  const svg = document.documentElement;
  const byId = id => document.getElementById(id);
  const graph = byId("graph"), head = byId("head"), tools = byId("tools");

  // Boxes are in preorder, the first child at its parent's start, each next one at its sibling's end.
  const boxes = [];
  for (let i = 0, path = [], ends = []; i < data.boxes.length; i += 4) {
    const [depth, name, value, own] = data.boxes.slice(i, i + 4);
    path.length = depth;
    const parent = depth ? path[depth - 1] : -1;
    const start = ends[depth] ?? (depth ? boxes[parent].start : 0);
    ends.length = depth;
    ends[depth] = start + value;
    path[depth] = boxes.length;
    boxes.push({ depth, name, value, own, start, parent, after: 0 });
  }
  // One past the last box beneath each box.
  for (let i = 0, open = []; i <= boxes.length; i++) {
    const depth = boxes[i]?.depth ?? 0;
    while (open.length > depth) boxes[open.pop()].after = i;
    open.push(i);
  }

  const hint = boxes.length
    ? "Click a frame to zoom, Esc to zoom out, Ctrl-F to search, arrow keys and Enter to walk. " + byId("name").textContent
    : byId("name").textContent;
  let zoomed = -1, focused = -1, width = 0, matching = null;
  const drawn = new Map();

  const make = (kind, attributes) => {
    const element = document.createElementNS(SVG, kind);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    return element;
  };
  const grouped = number => Math.round(number).toLocaleString("en-US");
  const counted = (number, noun) => grouped(number) + " " + noun + (number === 1 ? "" : "s");
  const amount = value => {
    if (!data.bytes) return counted(value, "block");
    if (value < 1024) return counted(value, "byte");
    const units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = 0, scaled = value / 1024;
    while (scaled >= 1023.95 && unit < units.length - 1) { scaled /= 1024; unit++; }
    return scaled.toFixed(1) + " " + units[unit];
  };
  const percent = (part, whole) => (whole ? part / whole * 100 : 0).toFixed(part === whole ? 0 : 2) + "%";

  function describe(box) {
    const [name, place] = data.names[box.name];
    const exact = data.bytes && box.value >= 1024 ? " (" + counted(box.value, "byte") + ")" : "";
    let numbers = amount(box.value) + exact + ", " + percent(box.value, data.total) + " of all";
    if (zoomed >= 0) numbers += ", " + percent(box.value, boxes[zoomed].value) + " of the zoomed frame";
    numbers += box.own === box.value ? ", all allocated here" : box.own ? ", " + amount(box.own) + " allocated here itself" : "";
    return [name + (place ? " — " + place : ""), numbers];
  }
  function show(box) {
    const [name, numbers] = box ? describe(box) : [searched() || hint, ""];
    byId("name").textContent = name;
    byId("numbers").textContent = numbers;
  }

  function draw() {
    width = Math.max(320, window.innerWidth || 1200);
    byId("back").setAttribute("width", width);
    const zoom = boxes[zoomed];
    const from = zoom ? zoom.start : 0, whole = zoom ? zoom.value : data.total;
    const scale = whole ? (width - 2 * MARGIN) / whole : 0;
    const ancestors = new Set();
    for (let up = zoom ? zoom.parent : -1; up >= 0; up = boxes[up].parent) ancestors.add(up);
    const fragment = document.createDocumentFragment();
    let rows = 0;
    drawn.clear();
    for (let i = 0; i < boxes.length;) {
      const box = boxes[i], above = ancestors.has(i);
      const outside = !above && zoom && (i < zoomed || i >= zoom.after);
      if (outside || (!above && box.value * scale < NARROWEST)) { i = box.after; continue; }
      const x = above ? MARGIN : MARGIN + (box.start - from) * scale;
      const wide = above ? width - 2 * MARGIN : box.value * scale;
      fragment.append(element(i, box, x, wide, above));
      rows = Math.max(rows, box.depth + 1);
      i++;
    }
    graph.replaceChildren(fragment);
    const height = TOP + rows * ROW + 30;
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", "0 0 " + width + " " + height);
    reset.disabled = zoomed < 0;
    paintMatches();
    setFocus(drawn.has(focused) ? focused : -1, false);
  }
  function element(index, box, x, wide, above) {
    const [name, , kind] = data.names[box.name];
    const group = make("g", { class: "box " + kind + (above ? " above" : "") });
    group.dataset.box = index;
    const y = TOP + box.depth * ROW;
    group.append(make("rect", { x: x.toFixed(2), y, width: wide.toFixed(2), height: ROW - 1, rx: 1.5 }));
    const room = Math.floor((wide - 6) / CHAR);
    if (room >= 3) {
      const label = make("text", { x: (x + 3).toFixed(2), y: y + 12.5 });
      label.textContent = name.length > room ? name.slice(0, room - 1) + "…" : name;
      group.append(label);
    }
    drawn.set(index, group);
    return group;
  }

  function zoom(index) {
    zoomed = index;
    draw();
    show(boxes[index]);
  }
  function setFocus(index, describeIt = true) {
    drawn.get(focused)?.classList.remove("focus");
    focused = index;
    const group = drawn.get(index);
    if (!group) return;
    group.classList.add("focus");
    group.parentNode.append(group); // above its neighbours' outlines
    if (describeIt) {
      show(boxes[index]);
      group.scrollIntoView({ block: "nearest" });
    }
  }

  // Searching: a regular expression on name and place; what is not one is searched for as it stands.
  let shareFound = "";
  function search(text) {
    matching = null;
    shareFound = "";
    if (text) {
      let pattern;
      try { pattern = new RegExp(text, "i"); }
      catch { pattern = new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i"); }
      matching = data.names.map(([name, place]) => pattern.test(name) || pattern.test(place));
      let sum = 0, frames = 0;
      for (let i = 0; i < boxes.length;) { // nested matches count once
        if (matching[boxes[i].name]) { sum += boxes[i].value; frames++; i = boxes[i].after; } else i++;
      }
      shareFound = frames
        ? "Found: " + amount(sum) + ", " + percent(sum, data.total) + " of all, is beneath matching frames"
        : "Found nothing";
    }
    paintMatches();
    show(null);
  }
  function searched() { return shareFound; }
  function paintMatches() {
    for (const [index, group] of drawn) group.classList.toggle("match", !!matching && matching[boxes[index].name]);
  }

  // Tools: HTML within the SVG, made here so that viewers without scripts see no dead buttons.
  const field = document.createElementNS(HTML, "input");
  field.id = "field";
  field.type = "search";
  field.placeholder = "search (regular expression)";
  field.setAttribute("aria-label", "Search frames by regular expression");
  field.setAttribute("style", "font:12px monospace;width:230px;height:18px;margin:0 8px 0 0");
  const reset = document.createElementNS(HTML, "button");
  reset.id = "reset";
  reset.type = "button";
  reset.textContent = "reset zoom";
  reset.setAttribute("style", "font:12px monospace;height:22px");
  tools.append(field, reset);
  field.addEventListener("input", () => search(field.value));
  reset.addEventListener("click", () => zoom(-1));

  const boxOf = event => {
    const group = event.target.closest?.("g.box");
    return group ? Number(group.dataset.box) : -1;
  };
  graph.addEventListener("click", event => {
    const index = boxOf(event);
    if (index < 0) return;
    focused = index;
    zoom(index);
    setFocus(index);
  });
  graph.addEventListener("mouseover", event => {
    const index = boxOf(event);
    if (index < 0) return;
    show(boxes[index]);
    const group = drawn.get(index);
    if (group && !group.querySelector("title")) {
      const tip = make("title", {});
      tip.textContent = describe(boxes[index]).join("\n");
      group.prepend(tip);
    }
  });
  graph.addEventListener("mouseleave", () => show(boxes[focused]));

  const firstChild = i => (boxes[i + 1]?.parent === i && drawn.has(i + 1) ? i + 1 : i);
  function sibling(i, step) {
    const row = [...drawn.keys()].filter(k => boxes[k].depth === boxes[i].depth).sort((a, b) => a - b);
    return row[row.indexOf(i) + step] ?? i;
  }
  document.addEventListener("keydown", event => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "f" || event.key === "/" && event.target !== field) {
      event.preventDefault();
      field.focus();
      field.select();
      return;
    }
    if (event.key === "Escape") {
      if (field.value) { field.value = ""; search(""); } else zoom(-1);
      field.blur();
      return;
    }
    if (event.target === field || event.target === reset || event.ctrlKey || event.altKey || event.metaKey) return;
    const first = zoomed >= 0 ? zoomed : 0;
    if (!boxes.length) return;
    const at = drawn.has(focused) ? focused : -1;
    const moves = {
      ArrowDown: () => setFocus(at < 0 ? first : firstChild(at)),
      ArrowUp: () => setFocus(at < 0 ? first : boxes[at].parent < 0 ? at : boxes[at].parent),
      ArrowLeft: () => setFocus(at < 0 ? first : sibling(at, -1)),
      ArrowRight: () => setFocus(at < 0 ? first : sibling(at, 1)),
      Enter: () => { if (at >= 0) { zoom(at); setFocus(at); } },
      Backspace: () => { if (zoomed >= 0) { const up = boxes[zoomed].parent; zoom(up); setFocus(up); } },
      Home: () => zoom(-1),
    };
    if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
  });
  window.addEventListener("resize", draw);
  window.addEventListener("scroll", () => head.setAttribute("transform", "translate(0 " + window.scrollY + ")"));
  draw();
  show(null);
})();
