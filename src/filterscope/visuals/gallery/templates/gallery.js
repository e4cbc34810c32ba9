// The pages' behaviour. All data is in this folder: nothing is fetched, and no library is used.
"use strict";

const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The pages of a layer and of a comparison: sort and filter the tiles.
function grid() {
  const list = byId("tiles");
  const tiles = [...list.children];
  const sort = byId("sort"), least = byId("activation"), label = byId("class"), changed = byId("changed");
  const boxes = [...document.querySelectorAll("input[name=verdict]")];
  const order = (list.dataset.order || "").split(" ");
  const cache = new Map(); // the tiles' values by sort key, read once
  const number = (tile, key) => Number(tile.getAttribute(`data-${key}`));

  function values(key) {
    if (!cache.has(key)) {
      const read = key === "rank" ? (tile) => (order.indexOf(tile.dataset.verdict) + 99) % 99 : (tile) => number(tile, key);
      cache.set(key, new Map(tiles.map((tile) => [tile, read(tile)])));
    }
    return cache.get(key);
  }

  let sortedBy = "number";
  function arrange() {
    if (sort.value === sortedBy) return;
    sortedBy = sort.value;
    const by = values(sortedBy), numbers = values("number"), sign = "down" in sort.selectedOptions[0].dataset ? -1 : 1;
    tiles.sort((a, b) => sign * (by.get(a) - by.get(b)) || numbers.get(a) - numbers.get(b));
    list.replaceChildren(...tiles);
  }

  function show() {
    const verdicts = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    if (least) byId("least").textContent = Number(least.value).toFixed(1);
    arrange();
    let shown = 0;
    for (const tile of tiles) {
      const hidden = (boxes.length > 0 && !verdicts.has(tile.dataset.verdict))
        || (least && number(tile, "activation") < Number(least.value))
        || (label && label.value !== "" && !tile.dataset.classes.includes(` ${label.value} `))
        || Boolean(changed && changed.checked && tile.dataset.changed === "0");
      if (tile.hidden !== hidden) tile.hidden = hidden;
      shown += !hidden;
    }
    byId("status").textContent = `${shown} of ${tiles.length} filters`;
  }

  function columns() {
    const visible = tiles.filter((tile) => !tile.hidden);
    const below = visible.findIndex((tile) => tile.offsetTop > visible[0].offsetTop);
    return below < 0 ? visible.length : below;
  }
  const moves = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: columns, ArrowUp: () => -columns() };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    const visible = tiles.filter((tile) => !tile.hidden);
    const target = visible[visible.indexOf(event.target.closest("li")) + moves[event.key]()];
    if (!target) return;
    event.preventDefault();
    target.firstElementChild.focus();
  });
  for (const control of [sort, least, label, changed, ...boxes]) {
    if (control) control.addEventListener("input", show);
  }
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  // A browser may restore the controls of an earlier visit; otherwise the page is complete and in order already.
  const restored = sort.value !== sortedBy || boxes.some((box) => !box.checked) || (least && least.value !== "0")
    || (label && label.value !== "") || (changed && changed.checked);
  // The first tiles are drawn before the style sheet lets thousands of others be laid out.
  addEventListener("load", () => setTimeout(() => list.classList.add("all"), 200));
  if (restored) show();
}

// The page of a layer's filters: the part of the address after # is the filter's number.
function filter() {
  const data = window.filterscope, { layout, filters, epochs } = data;
  const SYNTHESIZED = "image synthesized to activate it";
  let current = 0, timer = null;

  function sprite(name, label, caption) {
    const [left, top, width, height] = layout.places[name];
    const picture = element("span", "", "sprite"), figure = element("figure");
    const percent = (offset, whole, part) => (whole > part ? (100 * offset) / (whole - part) : 0);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", label);
    picture.style.backgroundImage = `url("../sprites/${encodeURIComponent(data.slug)}/${current}.webp")`;
    picture.style.backgroundSize = `${(100 * layout.width) / width}% ${(100 * layout.height) / height}%`;
    picture.style.backgroundPosition = `${percent(left, layout.width, width)}% ${percent(top, layout.height, height)}%`;
    figure.append(picture, element("figcaption", caption));
    return figure;
  }

  function fill(id, children) {
    const place = byId(id);
    if (place) place.replaceChildren(...children);
  }

  function showVerdict(place, word) {
    place.textContent = word || "not judged";
    place.className = `verdict ${word}`;
  }

  function showSamples(facts) {
    const inputs = facts.inputs.length ? `kernel; inputs ${facts.inputs.join(", ")}` : "kernel";
    const counts = new Map();
    const samples = data.recipes.map((recipe, k) => {
      counts.set(recipe, (counts.get(recipe) || 0) + 1);
      const label = `synthesized image ${counts.get(recipe)}, recipe ${recipe}`;
      return sprite(`sample${k}`, label, `${recipe}: ${facts.samples[k]}`);
    });
    fill("samples", [sprite("kernel", "kernel", inputs), ...samples]);
  }

  function showPatches(facts) {
    fill("patches", facts.patches.map(([name, value], k) =>
      sprite(`patch${k}`, `patch of an image${name ? `: ${name}` : ""}`, `${name ? `${name}, ` : ""}${value}`)));
  }

  function showResponse() {
    const chosen = document.querySelector("input[name=image]:checked");
    if (!chosen) return;
    const name = data.images[chosen.value] || `image ${Number(chosen.value) + 1}`;
    fill("response", [sprite(`response${chosen.value}`, `response to ${name}`, name)]);
  }

  function showEpoch() {
    const slider = byId("epoch");
    if (!slider) return;
    const place = Number(slider.value), facts = filters[current];
    const label = epochs[place] === 0 ? "epoch 0, before training" : `epoch ${epochs[place]}`;
    byId("epoch-label").textContent = label;
    slider.setAttribute("aria-valuetext", label);
    const captions = { kernel: "kernel", synthesis: SYNTHESIZED, response: "response to one image" };
    const kinds = Object.keys(captions).filter((kind) => `${kind}@${place}` in layout.places
      && (kind !== "synthesis" || facts.synthesized.includes(place)));
    fill("then", kinds.map((kind) => sprite(`${kind}@${place}`, `${captions[kind]}, ${label}`, captions[kind])));
    byId("then-note").textContent = facts.history[place] ? `Verdict in this epoch: ${facts.history[place]}.` : "";
  }

  function showClasses(facts) {
    const largest = Math.max(...facts.classes.map(([, multiple]) => multiple), 1);
    const rows = facts.classes.map(([label, multiple]) => {
      const row = element("li", `${data.classes[label] || `class ${label}`}: ${multiple}×`);
      const meter = element("span", "", "meter");
      meter.style.width = `${(100 * multiple) / largest}%`;
      row.append(meter);
      return row;
    });
    fill("classes", rows.length ? rows : [element("li", "no class more than the others")]);
  }

  function showCompared() {
    const place = byId("compared");
    if (!place) return;
    const [word, reason, change] = window.filterscopeCompared[current];
    showVerdict(byId("compared-verdict"), word);
    byId("compared-reason").textContent = reason && `– ${reason}`;
    byId("compared-change").textContent = change && `Differences: ${change}.`;
    const columns = Math.ceil(Math.sqrt(filters.length)), rows = Math.ceil(filters.length / columns);
    const captions = { kernel: "kernel", picture: SYNTHESIZED, row: "top-activating patches" };
    if (!("patches" in place.dataset)) delete captions.row;
    place.replaceChildren(...Object.entries(captions).map(([kind, caption]) => {
      const picture = element("span", "", `sprite ${kind}`), figure = element("figure");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${caption}, in the compared network`);
      picture.style.backgroundPosition = `${(100 * (current % columns)) / Math.max(columns - 1, 1)}% `
        + `${(100 * Math.floor(current / columns)) / Math.max(rows - 1, 1)}%`;
      figure.append(picture, element("figcaption", caption));
      return figure;
    }));
  }

  function show() {
    const asked = Number(location.hash.slice(1));
    current = Number.isInteger(asked) && asked >= 0 && asked < filters.length ? asked : 0;
    const facts = filters[current];
    document.title = `${data.layer}, filter ${current}`;
    byId("number").textContent = byId("crumb").textContent = current;
    byId("go").value = current;
    byId("prev").href = `#${(current + filters.length - 1) % filters.length}`;
    byId("next").href = `#${(current + 1) % filters.length}`;
    showVerdict(byId("verdict"), facts.verdict);
    byId("reason").textContent = facts.reason && `– ${facts.reason}`;
    for (const cell of document.querySelectorAll("td[data-key]")) {
      cell.textContent = facts[cell.dataset.key] ?? "not measured";
    }
    showSamples(facts);
    showPatches(facts);
    showClasses(facts);
    showResponse();
    showEpoch();
    showCompared();
  }

  function play() {
    const slider = byId("epoch");
    if (timer) {
      clearInterval(timer);
      timer = null;
    } else {
      slider.value = 0;
      showEpoch();
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        showEpoch();
        if (slider.value === slider.max) play();
      }, 700);
    }
    byId("play").textContent = timer ? "Stop" : "Play";
  }

  addEventListener("hashchange", show);
  byId("go").addEventListener("change", (event) => { location.hash = event.target.value; });
  for (const choice of document.querySelectorAll("input[name=image]")) choice.addEventListener("input", showResponse);
  if (byId("epoch")) {
    byId("epoch").addEventListener("input", showEpoch);
    byId("play").addEventListener("click", play);
  }
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, button") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") byId("prev").click();
    if (event.key === "ArrowRight") byId("next").click();
    if (event.key === "Escape") byId("up").click();
  });
  show();
}

({ layer: grid, compare: grid, filter })[document.body.dataset.page]?.();
