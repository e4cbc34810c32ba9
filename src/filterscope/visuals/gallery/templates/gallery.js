// The gallery's pages at work. Everything lies in this folder: nothing is fetched, no library is used.
"use strict";

const byId = (id) => document.getElementById(id);

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

// Layer and comparison: sort and filter what is there.
function grid() {
  const list = byId("tiles");
  const tiles = [...list.children];
  const sort = byId("sort"), least = byId("activation"), label = byId("class"), changed = byId("changed");
  const boxes = [...document.querySelectorAll("input[name=verdict]")];
  const order = (list.dataset.order || "").split(" ");
  const known = new Map(); // what tiles say under a key, read once
  const number = (tile, key) => Number(tile.dataset[key]);

  function values(key) {
    if (!known.has(key)) {
      const read = key === "rank" ? (tile) => (order.indexOf(tile.dataset.verdict) + 99) % 99 : (tile) => number(tile, key);
      known.set(key, new Map(tiles.map((tile) => [tile, read(tile)])));
    }
    return known.get(key);
  }

  let sorted = "number";
  function arrange() {
    if (sort.value === sorted) return;
    sorted = sort.value;
    const by = values(sorted), first = values("number"), sign = "down" in sort.selectedOptions[0].dataset ? -1 : 1;
    tiles.sort((a, b) => sign * (by.get(a) - by.get(b)) || first.get(a) - first.get(b));
    list.replaceChildren(...tiles);
  }

  function show() {
    const kept = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    if (least) byId("least").textContent = Number(least.value).toFixed(1);
    arrange();
    let shown = 0;
    for (const tile of tiles) {
      const hidden = (boxes.length > 0 && !kept.has(tile.dataset.verdict))
        || (least && number(tile, "activation") < Number(least.value))
        || (label && label.value !== "" && !tile.dataset.classes.includes(` ${label.value} `))
        || Boolean(changed && changed.checked && tile.dataset.changed === "0");
      if (tile.hidden !== hidden) tile.hidden = hidden;
      shown += !hidden;
    }
    byId("status").textContent = `${shown} of ${tiles.length} filters`;
  }

  const moves = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: across, ArrowUp: () => -across() };
  function across() {
    const seen = tiles.filter((tile) => !tile.hidden);
    const below = seen.findIndex((tile) => tile.offsetTop > seen[0].offsetTop);
    return below < 0 ? seen.length : below;
  }
  list.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    const seen = tiles.filter((tile) => !tile.hidden);
    const to = seen[seen.indexOf(event.target.closest("li")) + moves[event.key]()];
    if (!to) return;
    event.preventDefault();
    to.firstElementChild.focus();
  });
  for (const control of [sort, least, label, changed, ...boxes]) {
    if (control) control.addEventListener("input", show);
  }
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  // The browser may have kept what was chosen before; else all is there in its order.
  const chosen = sort.value !== sorted || boxes.some((box) => !box.checked) || (least && least.value !== "0")
    || (label && label.value !== "") || (changed && changed.checked);
  // What is seen first is drawn before thousands of others are.
  addEventListener("load", () => setTimeout(() => list.classList.add("all"), 200));
  if (chosen) show();
}

// A filter: its number stands behind the # of the address.
function filter() {
  const about = window.filterscope, { layout, filters, epochs } = about;
  let at = 0, playing = null;

  function figure(name, said, caption) {
    const [left, top, width, height] = layout.places[name];
    const picture = element("span", "", "sprite"), made = element("figure");
    const part = (offset, whole, own) => (whole > own ? (100 * offset) / (whole - own) : 0);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", said);
    picture.style.backgroundImage = `url("../sheets/${encodeURIComponent(about.slug)}/${at}.webp")`;
    picture.style.backgroundSize = `${(100 * layout.width) / width}% ${(100 * layout.height) / height}%`;
    picture.style.backgroundPosition = `${part(left, layout.width, width)}% ${part(top, layout.height, height)}%`;
    made.append(picture, element("figcaption", caption));
    return made;
  }

  function fill(id, made) {
    const place = byId(id);
    if (place) place.replaceChildren(...made);
  }

  function verdict(place, word) {
    place.textContent = word || "not judged";
    place.className = `verdict ${word}`;
  }

  function faces(facts) {
    const inputs = facts.inputs.length ? `kernel; inputs ${facts.inputs.join(", ")}` : "kernel";
    const seen = new Map();
    const made = about.recipes.map((recipe, k) => {
      const nth = (seen.get(recipe) || 0) + 1;
      seen.set(recipe, nth);
      return figure(`face${k}`, `synthesized picture ${nth}, recipe ${recipe}`, `${recipe}: ${facts.faces[k]}`);
    });
    fill("faces", [figure("kernel", "kernel", inputs), ...made]);
  }

  function crops(facts) {
    fill("crops", facts.crops.map(([name, value], k) =>
      figure(`crop${k}`, `part of an image${name ? `: ${name}` : ""}`, `${name ? `${name}, ` : ""}${value}`)));
  }

  function response() {
    const chosen = document.querySelector("input[name=image]:checked");
    if (!chosen) return;
    const name = about.images[chosen.value] || `image ${Number(chosen.value) + 1}`;
    fill("response", [figure(`response${chosen.value}`, `response to ${name}`, name)]);
  }

  function then() {
    const slider = byId("epoch");
    if (!slider) return;
    const place = Number(slider.value), facts = filters[at];
    const said = epochs[place] === 0 ? "epoch 0, before training" : `epoch ${epochs[place]}`;
    byId("epoch-said").textContent = said;
    slider.setAttribute("aria-valuetext", said);
    const names = { kernel: "kernel", synthesis: "what excites it most", response: "its response to one image" };
    const kinds = Object.keys(names).filter((kind) => `${kind}@${place}` in layout.places
      && (kind !== "synthesis" || facts.synthesized.includes(place)));
    fill("then", kinds.map((kind) => figure(`${kind}@${place}`, `${names[kind]}, ${said}`, names[kind])));
    byId("then-note").textContent = facts.history[place] ? `Its verdict then: ${facts.history[place]}.` : "";
  }

  function classes(facts) {
    const most = Math.max(...facts.classes.map(([, times]) => times), 1);
    const made = facts.classes.map(([label, times]) => {
      const row = element("li", `${about.classes[label] || `class ${label}`}: ${times}×`);
      const meter = element("span", "", "meter");
      meter.style.width = `${(100 * times) / most}%`;
      row.append(meter);
      return row;
    });
    fill("classes", made.length ? made : [element("li", "no class more than others")]);
  }

  function beside() {
    const place = byId("beside");
    if (!place) return;
    const [word, reason, change] = window.filterscopeBeside[at];
    verdict(byId("beside-verdict"), word);
    byId("beside-reason").textContent = reason && `– ${reason}`;
    byId("beside-change").textContent = change && `What has changed: ${change}.`;
    const columns = Number(place.dataset.columns), rows = Number(place.dataset.rows);
    const kinds = { kernel: "kernel", picture: "what excites it most", strip: "real images that excite it most" };
    if (!("crops" in place.dataset)) delete kinds.strip;
    place.replaceChildren(...Object.entries(kinds).map(([kind, said]) => {
      const picture = element("span", "", `sprite ${kind}`), made = element("figure");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${said}, there`);
      picture.style.backgroundPosition = `${(100 * (at % columns)) / Math.max(columns - 1, 1)}% `
        + `${(100 * Math.floor(at / columns)) / Math.max(rows - 1, 1)}%`;
      made.append(picture, element("figcaption", said));
      return made;
    }));
  }

  function show() {
    const asked = Number(location.hash.slice(1));
    at = Number.isInteger(asked) && asked >= 0 && asked < filters.length ? asked : 0;
    const facts = filters[at];
    document.title = `${about.layer}, filter ${at}`;
    byId("number").textContent = byId("crumb").textContent = at;
    byId("go").value = at;
    byId("prev").href = `#${(at + filters.length - 1) % filters.length}`;
    byId("next").href = `#${(at + 1) % filters.length}`;
    verdict(byId("verdict"), facts.verdict);
    byId("reason").textContent = facts.reason && `– ${facts.reason}`;
    for (const cell of document.querySelectorAll("td[data-key]")) {
      const value = facts[cell.dataset.key];
      cell.textContent = value === null || value === undefined ? "not measured" : value;
    }
    faces(facts);
    crops(facts);
    classes(facts);
    response();
    then();
    beside();
  }

  function play() {
    const slider = byId("epoch"), button = byId("play");
    if (playing) {
      clearInterval(playing);
      playing = null;
    } else {
      slider.value = 0;
      then();
      playing = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        then();
        if (slider.value === slider.max) play();
      }, 700);
    }
    button.textContent = playing ? "Stop" : "Play";
  }

  addEventListener("hashchange", show);
  byId("go").addEventListener("change", (event) => { location.hash = event.target.value; });
  for (const choice of document.querySelectorAll("input[name=image]")) choice.addEventListener("input", response);
  if (byId("epoch")) {
    byId("epoch").addEventListener("input", then);
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
