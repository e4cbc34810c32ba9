// The pages' behaviour. All data is in this folder: nothing is fetched, and no library is used.
"use strict";

const byId = (id) => document.getElementById(id);
const VERDICTS = document.body.dataset.verdicts.split(" ");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The place of tile `i` in an atlas of `count` tiles, in percent of any size it is shown at.
function tilePosition(count, i) {
  const columns = Math.ceil(Math.sqrt(count)), rows = Math.ceil(count / columns);
  return `${(100 * (i % columns)) / Math.max(columns - 1, 1)}% ${(100 * Math.floor(i / columns)) / Math.max(rows - 1, 1)}%`;
}

// A small picture of a filter: a synthesized image, or its best real patch where that says more.
// `root` leads to the folder of the gallery; patches are three in a row.
function thumbnail(root, { slug, count, real }, number) {
  const isReal = real.includes(number), made = element("span", "", isReal ? "sprite real" : "sprite");
  const columns = Math.ceil(Math.sqrt(count)), wide = isReal ? 3 : 1;
  const x = (100 * wide * (number % columns)) / Math.max(wide * columns - 1, 1);
  made.style.backgroundImage = `url("${root}atlas/${encodeURIComponent(slug)}-${isReal ? "patches" : "synthesis"}.webp")`;
  made.style.backgroundSize = `${100 * wide * columns}% ${100 * Math.ceil(count / columns)}%`;
  made.style.backgroundPosition = `${x}% ${tilePosition(count, number).split(" ")[1]}`;
  if (isReal) made.title = "a patch of a real image";
  return made;
}

function filterAddress(root, slug, number) {
  return `${root}filters/${encodeURIComponent(slug)}.html#${number}`;
}

// The pictures of a filter, as an image; its file calls filterscopeSheet.
const sheets = new Map();
function loadSheet(root, slug, number) {
  const key = `${slug}/${number}`;
  if (!sheets.has(key)) {
    sheets.set(key, new Promise((done) => {
      const script = element("script");
      script.src = `${root}sprites/${encodeURIComponent(slug)}/${number}.js`;
      script.filterscopeDone = done;
      script.addEventListener("load", () => script.remove());
      document.head.append(script);
    }));
    if (sheets.size > 200) sheets.delete(sheets.keys().next().value);
  }
  return sheets.get(key);
}
window.filterscopeSheet = (number, url) => {
  const image = new Image(), done = document.currentScript.filterscopeDone;
  image.src = url;
  image.decode().then(() => done(image));
};

// A part of a sheet as a data URL, so that it can be enlarged, saved and copied.
function cutOut(sheet, [left, top, width, height]) {
  const canvas = element("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").drawImage(sheet, left, top, width, height, 0, 0, width, height);
  return canvas.toDataURL();
}

// An image of a filter's response that appears when its sheet is there.
function responseImage(root, slug, number, place, label) {
  const image = element("img");
  image.alt = label;
  image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";
  loadSheet(root, slug, number).then((sheet) => { image.src = cutOut(sheet, place); });
  return image;
}

const percent = (share) => `${Math.max(1, Math.round(100 * share))} %`;
const signWords = (sign) => (Math.abs(sign) < 0.3 ? "weights of both signs" : sign > 0 ? "mostly positive" : "mostly negative");

function showVerdict(place, word) {
  place.textContent = word || "not judged";
  place.className = `verdict ${word}`;
}

// ---- The order and the selection of a layer's filters; the part of the address after # holds them. ----

const EVERYTHING = { sort: "number", least: "0", class: "", hide: "", changed: "" };

// "#12&sort=z" → filter 12 and {sort: "z", …}; a part that is not there has its default.
function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const number = Number.parseInt(location.hash.slice(1), 10);
  const view = Object.fromEntries(Object.entries(EVERYTHING).map(([key, usual]) => [key, parts.get(key) ?? usual]));
  return { number: Number.isNaN(number) ? null : number, view };
}

function address(number, view) {
  const parts = Object.entries(view).filter(([key, value]) => value !== EVERYTHING[key]);
  const query = new URLSearchParams(parts).toString();
  return `#${[number ?? "", query].filter((part) => part !== "").join("&")}`;
}

// Returns the visible ones of `rows` in their order; a row has a number, a verdict, classes and its measures.
function arranged(rows, view) {
  const hidden = new Set(view.hide.split(","));
  const rank = (row) => (VERDICTS.indexOf(row.verdict) + 99) % 99;
  const value = view.sort === "rank" ? rank : (row) => Number(row[view.sort]) || 0;
  const sign = view.sort === "number" || view.sort === "rank" ? 1 : -1;
  return rows
    .filter((row) => !(row.verdict && hidden.has(row.verdict)) && (Number(row.activation) || 0) >= Number(view.least)
      && (view.class === "" || row.classes.includes(view.class)) && !(view.changed && row.changed === "0"))
    .sort((a, b) => sign * (value(a) - value(b)) || a.number - b.number);
}

// ---- The slider over epochs. ----

const EPOCHS = window.filterscopeEpochs || { metrics: {}, words: ["", ...VERDICTS], layers: {}, shown: null };
const USUAL_METRICS = ["val/acc", "train/acc", "val/loss", "train/loss"];

function epochName(epoch) {
  return epoch === 0 ? "epoch 0, before training" : `epoch ${epoch}`;
}

// The metrics of our own trainings, or the first ones of a training that names them in its own way.
function shownMetrics(row) {
  const usual = USUAL_METRICS.filter((name) => name in row);
  return usual.length ? usual : Object.keys(row).slice(0, 4);
}

// Draws the first metric over all epochs, and a mark at the chosen one.
function drawChart(epoch) {
  const chart = byId("chart"), metrics = EPOCHS.metrics;
  const rows = Object.values(metrics);
  const name = shownMetrics(Object.assign({}, ...rows)).find((each) => rows.filter((row) => each in row).length > 1);
  if (!name) return;
  const points = Object.entries(metrics).filter(([, row]) => name in row).map(([at, row]) => [Number(at), row[name]]);
  const last = Math.max(...points.map(([at]) => at)), values = points.map(([, value]) => value);
  const low = Math.min(...values), high = Math.max(...values);
  const x = (at) => 4 + (312 * at) / Math.max(last, 1), y = (value) => 64 - (58 * (value - low)) / (high - low || 1);
  const line = points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  chart.firstElementChild.setAttribute("points", line);
  for (const end of ["x1", "x2"]) chart.lastElementChild.setAttribute(end, x(epoch));
  chart.setAttribute("aria-label", `${name} from ${low.toPrecision(3)} to ${high.toPrecision(3)} over ${last} epochs`);
  chart.toggleAttribute("hidden", false);
}

// Lets the slider call `show(place)`; `names` are the epochs of its places, null for the network of the gallery itself.
// Without such a place it begins at the epoch of that network.
function followSlider(names, show, nameOfRest = "") {
  const slider = byId("epoch");
  if (!slider) return () => {};
  if (!names.includes(null) && names.includes(EPOCHS.shown)) slider.value = names.indexOf(EPOCHS.shown);
  let timer = null;
  const update = () => {
    const place = Number(slider.value), own = names[place] === null, epoch = own ? EPOCHS.shown : names[place];
    const label = [own ? nameOfRest : "", epoch === null ? "" : epochName(epoch)].filter(Boolean).join(", ");
    byId("epoch-label").textContent = label;
    slider.setAttribute("aria-valuetext", label);
    const row = epoch === null ? {} : EPOCHS.metrics[epoch] || {};
    byId("metrics").textContent = shownMetrics(row)
      .map((name) => `${name} ${row[name].toPrecision(3)}`).join(" · ");
    if (epoch !== null) drawChart(epoch);
    show(place);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    byId("play").textContent = "Play";
  };
  slider.addEventListener("input", update);
  byId("play").addEventListener("click", () => {
    if (timer) return stop();
    slider.value = 0;
    update();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      update();
      if (slider.value === slider.max) stop();
    }, 700);
    byId("play").textContent = "Stop";
  });
  return update;
}

// Fills a bar of verdicts; `words` holds the index of each filter's verdict.
function fillBar(place, words) {
  const counts = new Map();
  for (const each of words) counts.set(each, (counts.get(each) || 0) + 1);
  const known = [...counts.keys()].filter((each) => EPOCHS.words[each]).sort((a, b) => a - b);
  const bar = place.querySelector(".bar"), legend = place.querySelector(".counts");
  if (!bar || !known.length) return;
  const text = (each) => `${counts.get(each)} ${EPOCHS.words[each]}`;
  bar.setAttribute("aria-label", known.map(text).join(", "));
  bar.replaceChildren(...known.map((each) => {
    const part = element("span", "", EPOCHS.words[each]);
    part.style.flexGrow = counts.get(each);
    return part;
  }));
  legend.replaceChildren(...known.flatMap((each) => [element("span", text(each), `verdict ${EPOCHS.words[each]}`), " "]));
}

// ---- The pages. ----

// The page of a layer and that of a comparison: sort and filter the tiles.
function grid() {
  const list = byId("tiles"), tiles = [...list.children];
  const controls = { sort: byId("sort"), least: byId("activation"), class: byId("class"), changed: byId("changed") };
  const boxes = [...document.querySelectorAll("input[name=verdict]")];
  const rows = tiles.map((tile) => {
    const classes = (tile.dataset.classes || "").split(" ").filter(Boolean);
    return { ...tile.dataset, tile, number: Number(tile.dataset.number), classes };
  });

  function chosen() {
    const { sort, least, class: label, changed } = controls;
    const hide = boxes.filter((box) => !box.checked).map((box) => box.value).join(",");
    return { sort: sort.value, least: least ? least.value : "0", class: label ? label.value : "", hide,
      changed: changed && changed.checked ? "1" : "" };
  }

  function choose(view) {
    for (const [key, control] of Object.entries(controls)) {
      if (!control) continue;
      if (control.type === "checkbox") control.checked = view[key] !== "";
      else control.value = view[key];
    }
    if (controls.sort.selectedIndex < 0) controls.sort.value = "number";
    for (const box of boxes) box.checked = !view.hide.split(",").includes(box.value);
  }

  let current = "#"; // what is shown, as an address
  function show() {
    const view = chosen(), wanted = address(null, view);
    if (controls.least) byId("least").textContent = Number(view.least).toFixed(1);
    if (wanted === current) return;
    current = wanted;
    const visible = arranged(rows, view), shown = new Set(visible);
    list.replaceChildren(...visible.map((row) => row.tile), ...rows.filter((row) => !shown.has(row)).map((row) => row.tile));
    for (const row of rows) {
      row.tile.hidden = !shown.has(row);
      const link = row.tile.firstElementChild;
      if (link.href) link.href = link.getAttribute("href").split("#")[0] + address(row.number, view);
    }
    byId("status").textContent = `${visible.length} of ${rows.length} filters`;
  }

  const visibleTiles = () => [...list.children].filter((tile) => !tile.hidden);
  function columns() {
    const visible = visibleTiles();
    const below = visible.findIndex((tile) => tile.offsetTop > visible[0].offsetTop);
    return below < 0 ? visible.length : below;
  }
  const moves = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: columns, ArrowUp: () => -columns() };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    const visible = visibleTiles();
    const target = visible[visible.indexOf(event.target.closest("li")) + moves[event.key]()];
    if (!target) return;
    event.preventDefault();
    target.querySelector("a").focus();
  });
  for (const control of [...Object.values(controls), ...boxes]) {
    if (control) control.addEventListener("input", () => {
      show();
      history.replaceState(null, "", current); // Back and a copied address lead to the same view
    });
  }
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  // The first tiles are drawn before the style sheet lets thousands of others be laid out.
  addEventListener("load", () => setTimeout(() => list.classList.add("all"), 200));
  const { number, view } = readAddress();
  choose(view);
  show();
  if (number !== null && tiles[number]) {
    list.classList.add("all");
    rows[number].tile.querySelector("a").focus();
  }
  if (window.filterscopeRuns) moveRuns(list, rows);
  else moveGrid(list, rows);
}

// Lets the slider of a layer's page move the pictures and verdicts of all its filters.
function moveGrid(list, rows) {
  const bar = byId("bar"), records = bar && EPOCHS.layers[bar.dataset.slug];
  if (!records || !byId("epoch")) return;
  const slug = bar.dataset.slug, count = rows.length, kind = byId("kind"), last = records.epochs.length;
  const final = rows.map((row) => EPOCHS.words.indexOf(row.verdict));
  const file = (which, place) => `../history/${encodeURIComponent(slug)}-${which}-${place}.webp`;
  let loaded = null; // images that keep the atlases of all epochs decoded
  const load = () => {
    loaded ??= records.kinds.flatMap((kinds, place) => kinds.map((which) => {
      const image = new Image();
      image.src = file(which, place);
      return image;
    }));
  };

  const update = followSlider([...records.epochs, null], (place) => {
    if (place < last) load();
    const has = (which) => place < last && records.kinds[place].includes(which);
    const set = (name, value) => (value ? list.style.setProperty(name, `url("${value}")`) : list.style.removeProperty(name));
    set("--kernel", has("kernel") && file("kernel", place));
    set("--picture", has(kind.value) && file(kind.value, place));
    list.classList.toggle("pixels", place < last && kind.value === "response");
    const words = place < last ? records.verdicts[place] : final;
    const drawn = new Set(place < last && kind.value === "synthesis" ? records.synthesized[place] : rows.keys());
    rows.forEach((row, i) => {
      row.tile.classList.toggle("without", place < last && (!has(kind.value) || !drawn.has(i)));
      const verdict = row.tile.querySelector(".verdict");
      if (verdict && verdict.textContent !== EPOCHS.words[words[i]]) showVerdict(verdict, EPOCHS.words[words[i]]);
    });
    fillBar(bar, words);
  }, "the network of this gallery");
  kind.addEventListener("input", () => {
    if (Number(byId("epoch").value) === last) byId("epoch").value = last - 1; // patches and responses are those of recorded epochs
    update();
  });
  byId("epoch").value = last;
  update();
}

// The overview of several runs: the order of the columns.
function orderRuns() {
  const order = byId("order"), table = byId("runs");
  if (!order) return;
  const header = [...table.querySelectorAll("thead th")].map((cell) => Number(cell.dataset.run));
  order.addEventListener("input", () => {
    const row = [...table.querySelectorAll("tr[data-metric]")].find((each) => each.dataset.metric === order.value);
    const sign = "up" in order.selectedOptions[0].dataset ? 1 : -1;
    const value = (run) => {
      const number = row ? Number.parseFloat(row.querySelector(`[data-run="${run}"]`).textContent) : run;
      return row ? sign * (Number.isNaN(number) ? -sign * Infinity : number) : run;
    };
    const wanted = [...header].sort((a, b) => value(a) - value(b) || a - b);
    for (const each of table.rows) {
      for (const run of wanted) each.append(each.querySelector(`[data-run="${run}"]`));
    }
  });
  order.dispatchEvent(new Event("input"));
}

// Lets the slider move the pictures and verdicts of a layer in all runs, and two pictures be compared by a wipe.
function moveRuns(list, rows) {
  const { slug, runs, words } = window.filterscopeRuns;
  const epochs = [...new Set(runs.flatMap((run) => (run.records ? run.records.epochs : [])))].sort((a, b) => a - b);
  const file = (r, kind, place) => `../runs/${r}/${place === null ? "atlas" : "history"}/${encodeURIComponent(slug)}-`
    + `${place !== null ? `${kind}-${place}` : kind === "kernel" ? "kernels" : "synthesis"}.webp`;
  const placeAt = (run, epoch) => (run.records ? run.records.epochs.findLastIndex((each) => each <= epoch) : -1);
  const final = rows.map((row) => [...row.tile.querySelectorAll(".cell .verdict")].map((each) => each.textContent));
  const longest = runs.reduce((a, b) => (Object.keys(b.metrics).length > Object.keys(a.metrics).length ? b : a));
  EPOCHS.metrics = longest.metrics;

  const update = followSlider([...epochs, null], (at) => {
    const rest = at === epochs.length;
    runs.forEach((run, r) => {
      const place = rest ? -1 : placeAt(run, epochs[at]);
      const has = (kind) => place >= 0 && run.records.kinds[place].includes(kind);
      for (const [name, kind] of [[`--k${r}`, "kernel"], [`--p${r}`, "synthesis"]]) {
        if (has(kind)) list.style.setProperty(name, `url("${file(r, kind, place)}")`);
        else list.style.removeProperty(name);
      }
    });
    rows.forEach((row, i) => [...row.tile.querySelectorAll("a.cell")].forEach((cell, c) => {
      const run = runs[cell.dataset.run], place = rest ? -1 : placeAt(run, epochs[at]);
      const word = place < 0 ? final[i][c] : words[run.records.verdicts[place][run.partners[i]]];
      showVerdict(cell.querySelector(".verdict"), word === "not judged" ? "" : word);
    }));
  }, "the networks of the galleries");
  if (byId("epoch")) update();

  const choices = runs.flatMap((run, r) => (run.count ? [[`${run.name}, kernel`, r, "kernel", null],
    [`${run.name}, synthesized image`, r, "synthesis", null],
    ...(run.records ? run.records.epochs.map((epoch, place) => [`${run.name}, kernel, ${epochName(epoch)}`, r, "kernel", place]) : [])] : []));
  const menus = [byId("wipe-from"), byId("wipe-to")];
  menus.forEach((menu) => menu.append(...choices.map(([label], at) => {
    const option = element("option", label);
    option.value = at;
    return option;
  })));
  const second = choices.findIndex(([, r, kind]) => r === 1 && kind === "synthesis");
  menus[0].value = choices.findIndex(([, r, kind]) => r === 0 && kind === "synthesis");
  menus[1].value = second < 0 ? 0 : second;
  let shown = 0;
  const wipe = () => {
    ["wipe-left", "wipe-right"].forEach((id, side) => {
      const [, r, kind, place] = choices[menus[side].value], partner = runs[r].partners[shown], sprite = byId(id);
      const columns = Math.ceil(Math.sqrt(runs[r].count)), lines = Math.ceil(runs[r].count / columns);
      sprite.style.backgroundImage = partner === null ? "none" : `url("${file(r, kind, place)}")`;
      sprite.style.backgroundSize = `${100 * columns}% ${100 * lines}%`;
      sprite.style.backgroundPosition = tilePosition(runs[r].count, partner || 0);
      sprite.classList.toggle("kernel", kind === "kernel");
    });
    byId("wipe-left").style.clipPath = `inset(0 ${100 - byId("wipe-share").value}% 0 0)`;
    byId("viewer-text").textContent = `filter ${shown} of ${runs[0].name}`;
  };
  for (const control of [...menus, byId("wipe-share")]) control.addEventListener("input", wipe);
  rows.forEach((row, i) => row.tile.querySelector(".wipe").addEventListener("click", () => {
    shown = i;
    wipe();
    byId("viewer").showModal();
  }));
}

// The overview: verdicts over epochs, and the search for filters.
function overview() {
  const layers = EPOCHS.layers, epochs = [...new Set(Object.values(layers).flatMap((each) => each.epochs))].sort((a, b) => a - b);
  const bars = [...document.querySelectorAll("[data-slug]")];
  followSlider(epochs, (place) => {
    const found = bars.map((bar) => {
      const records = layers[bar.dataset.slug];
      const at = records ? records.epochs.findLastIndex((epoch) => epoch <= epochs[place]) : -1;
      if (at >= 0) fillBar(bar, records.verdicts[at]);
      return at >= 0 ? records.verdicts[at] : null;
    });
    if (!found.includes(null)) fillBar(byId("all"), found.flat());
  })();
  search();
}

function search() {
  const index = window.filterscopeSearch, words = byId("words"), label = byId("class"), most = 60;
  const images = [...document.querySelectorAll("input[name=image]")];
  const layers = index.layers.map((each) => ({ ...each, ...window.filterscopeLinks[each.name] }));
  const text = (layer, number, [verdict, classes, sentence]) => [layer.name, number, index.words[verdict], sentence,
    ...classes.slice(0, 3).map(([each]) => index.classes[each] || "")].join(" ").toLowerCase();

  function found() {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean), chosen = images.find((each) => each.checked);
    if (!asked.length && !(label && label.value) && !chosen) return null;
    const hits = [];
    layers.forEach((layer) => {
      const numbers = chosen ? layer.active[chosen.value] || [] : layer.filters.keys();
      for (const number of numbers) {
        const facts = layer.filters[number], known = text(layer, number, facts).split(/\s+/);
        const says = (word) => (/^\d+$/.test(word) ? String(number) === word : known.some((each) => each.includes(word)));
        if (!asked.every(says)) continue;
        const [, multiple] = label && label.value ? facts[1].find(([each]) => String(each) === label.value) || [0, 0] : [0, 1];
        if (multiple) hits.push({ layer, number, multiple, verdict: index.words[facts[0]] });
      }
    });
    return label && label.value ? hits.sort((a, b) => b.multiple - a.multiple) : hits;
  }

  function item(layer, number, strength, map, verdict) {
    const made = element("li"), link = element("a");
    link.href = filterAddress("", layer.slug, number);
    link.append(thumbnail("", layer, number), ...(map ? [map] : []), element("span", `${layer.name} ${number}${strength}`));
    if (verdict) link.append(element("span", verdict, `verdict ${verdict}`));
    made.append(link);
    return made;
  }

  // Shows what the server found for an image of the reader's own; `serve=true` calls it.
  window.filterscopeFound = ({ image, layers: answers }) => {
    for (const each of images) each.checked = false;
    const picture = element("img");
    [picture.src, picture.alt] = [image, "your image as the network sees it"];
    const own = element("li");
    own.append(picture, "your image");
    byId("found").replaceChildren(own, ...answers.flatMap((found) => found.filters.map(([number, times, map]) => {
      const layer = layers.find((each) => each.name === found.name), response = element("img");
      [response.src, response.alt] = [map, `response of ${layer.name} ${number} to your image`];
      return item(layer, number, times === null ? "" : `: ${times}×`, response, "");
    })));
    byId("status").textContent = "The filters that your image activates most, with their responses to it; × how many times as much as images do on average.";
  };

  function show() {
    const hits = found(), chosen = images.find((each) => each.checked);
    byId("found").replaceChildren(...(hits || []).slice(0, most).map(({ layer, number, multiple, verdict }) => {
      const map = chosen && responseImage("", layer.slug, number, layer.responses[chosen.value], `response of ${layer.name} ${number} to the image`);
      return item(layer, number, label && label.value ? ` ${multiple}×` : "", map, verdict);
    }));
    const more = hits && hits.length > most ? `, the first ${most} shown` : "";
    byId("status").textContent = hits ? `${hits.length} ${hits.length === 1 ? "filter" : "filters"}${more}` : "";
  }
  // The address holds what is searched for, so that Back and a copied address lead to the same filters.
  function choose() {
    const chosen = images.find((each) => each.checked);
    const asked = { words: words.value, class: label ? label.value : "", image: chosen ? chosen.value : "" };
    history.replaceState(null, "", `#${new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== ""))}`);
    show();
  }
  for (const control of [words, label, ...images]) if (control) control.addEventListener("input", choose);
  const asked = new URLSearchParams(location.hash.slice(1));
  words.value = asked.get("words") || "";
  if (label) label.value = asked.get("class") || "";
  for (const each of images) each.checked = each.value === asked.get("image");
  if (label && label.selectedIndex < 0) label.value = "";
  if (found()) show();
}

// The page of a layer's filters: the part of the address after # is the filter's number and the order of the layer's page.
function filter() {
  const data = window.filterscope, links = window.filterscopeLinks, { layout, filters, epochs } = data;
  const rows = filters.map((facts, number) => ({ ...facts, number, classes: facts.classes.slice(0, 3).map(([each]) => String(each)) }));
  const SYNTHESIZED = "image synthesized to activate it";
  let current = 0, sheet = null, cut = new Map();

  function picture(name) {
    if (!cut.has(name)) cut.set(name, cutOut(sheet, layout.places[name]));
    return cut.get(name);
  }

  function enlargeable(name, label, caption) {
    const button = element("button", "", "enlarge"), image = element("img");
    image.src = picture(name);
    image.alt = label;
    button.type = "button";
    button.title = "enlarge";
    button.append(image);
    button.addEventListener("click", () => enlarge(image, `${data.layer}, filter ${current}: ${caption}`, name));
    return button;
  }

  function figure(name, label, caption) {
    const made = element("figure");
    made.append(enlargeable(name, label, caption), element("figcaption", caption));
    return made;
  }

  function enlarge(image, caption, name) {
    byId("viewer-image").src = byId("viewer-save").href = image.src;
    byId("viewer-image").alt = image.alt;
    byId("viewer-text").textContent = caption;
    byId("viewer-save").download = `${data.slug}-${current}-${name.replace("@", "-epoch-")}.png`;
    byId("viewer-copy").hidden = !(navigator.clipboard && window.ClipboardItem);
    byId("viewer").showModal();
  }

  function fill(id, children) {
    const place = byId(id);
    if (place) place.replaceChildren(...children);
  }

  function showSamples(facts) {
    const counts = new Map();
    const samples = data.recipes.map((recipe, k) => {
      counts.set(recipe, (counts.get(recipe) || 0) + 1);
      const label = `synthesized image ${counts.get(recipe)}, recipe ${recipe}`;
      return figure(`sample${k}`, label, `${recipe}: ${facts.samples[k]}`);
    });
    fill("samples", [figure("kernel", "kernel", "kernel"), ...samples]);
    byId("sentence").textContent = facts.sentence || "";
  }

  function showPatches(facts) {
    fill("patches", facts.patches.map(([name, value], k) =>
      figure(`patch${k}`, `patch of an image${name ? `: ${name}` : ""}`, `${name ? `${name}, ` : ""}${value}`)));
  }

  function showResponse() {
    const chosen = document.querySelector("input[name=image]:checked");
    if (!chosen) return;
    const name = data.images[chosen.value] || `image ${Number(chosen.value) + 1}`;
    fill("response", [figure(`response${chosen.value}`, `response to ${name}`, name)]);
  }

  const showEpoch = followSlider(epochs, (place) => {
    if (!sheet) return;
    const facts = filters[current], captions = { kernel: "kernel", synthesis: SYNTHESIZED, patch: "best patch of the examples", response: "response to one image" };
    const kinds = Object.keys(captions).filter((kind) => `${kind}@${place}` in layout.places
      && (kind !== "synthesis" || facts.synthesized.includes(place)));
    fill("then", kinds.map((kind) => figure(`${kind}@${place}`, `${captions[kind]}, ${epochName(epochs[place])}`, captions[kind])));
    const verdict = facts.history[place] ? `Verdict in this epoch: ${facts.history[place]}` : "";
    byId("then-note").textContent = [verdict, facts.sentences[place]].filter(Boolean).join("; ");
  });

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

  function showSimilar(facts) {
    fill("similar", Object.entries(facts.similar).filter(([, near]) => near.length).flatMap(([kind, near]) => {
      const list = element("ul", "", "found");
      list.append(...near.map(([number, likeness]) => {
        const item = element("li"), link = element("a");
        link.href = address(number, readAddress().view);
        link.append(thumbnail("../", links[data.layer], number), element("span", `filter ${number}: ${likeness}`));
        item.append(link);
        return item;
      }));
      return [element("h3", kind === "kernel" ? "By kernel" : "By responses", "near-heading"), list];
    }));
    if (byId("similar") && !byId("similar").children.length) byId("similar").textContent = "No filter is similar.";
  }

  // A link to a filter of any layer of the gallery; only its name if the gallery does not show that layer.
  function filterLink([layer, number], withPicture = false) {
    const shown = links[layer], link = element(shown ? "a" : "span", withPicture ? "" : `${layer} ${number}`);
    if (shown) link.href = filterAddress("../", shown.slug, number);
    if (shown && withPicture) {
      link.append(thumbnail("../", shown, number));
      link.setAttribute("aria-label", `${layer}, filter ${number}`);
    }
    return link;
  }

  const inputName = (channel, sources) => (sources.length ? sources.map(([layer, number]) => `${layer} ${number}`).join(" + ") : `input ${channel}`);

  function showInputs(facts) {
    const shown = facts.circuit.inputs.filter((_, k) => `input${k}` in layout.places); // the image's channels are not
    fill("inputs", shown.map(([channel, share, sign, sources], k) => {
      const item = element("li"), both = element("div", "", "both"), name = inputName(channel, sources);
      both.append(enlargeable(`input${k}`, `slice of the kernel for ${name}`, `slice of the kernel for ${name}`));
      if (sources.length) both.append(filterLink(sources.at(-1), true));
      item.append(both, ...sources.slice(-4).flatMap((each, at) => [at ? " + " : "", filterLink(each)]));
      if (!sources.length) item.append(name);
      if (sources.length > 4) item.append(` + ${sources.length - 4} more`);
      item.append(`: ${percent(share)}, ${signWords(sign)}`);
      return item;
    }));
    const names = facts.circuit.expanded.map(([channel, sources]) => inputName(channel, sources));
    const labels = names.length ? names : ["weights of the pixels"];
    fill("expanded", "expanded0" in layout.places ? labels.map((name, k) => figure(`expanded${k}`, `expanded weights: ${name}`, name)) : []);
  }

  function showUsers(facts) {
    fill("users", facts.circuit.users.map(([layer, number, share, sign]) => {
      const item = element("li"), link = filterLink([layer, number], true), text = element("span");
      text.append(filterLink([layer, number]), `: ${percent(share)} of its weights, ${signWords(sign)}`);
      item.append(link, text);
      return item;
    }));
    const weights = facts.circuit.head.map(([label, weight]) => `${data.logits[label] || `class ${label}`} ${weight > 0 ? "+" : ""}${weight}`);
    byId("users-note").textContent = (facts.circuit.users.length ? "The share that this filter has in their squared weights. " : "")
      + (weights.length ? `The classes that the head weighs it most for and against: ${weights.join("; ")}.` : "");
    byId("users-card").hidden = !facts.circuit.users.length && !weights.length;
  }

  function showPictures(facts) {
    cut = new Map();
    showInputs(facts);
    showSamples(facts);
    showPatches(facts);
    showResponse();
    showEpoch();
  }

  function show() {
    const { number, view } = readAddress();
    current = number !== null && number >= 0 && number < filters.length ? number : 0;
    const facts = filters[current], order = arranged(rows, view).map((row) => row.number);
    const sequence = order.includes(current) ? order : rows.map((row) => row.number);
    const at = sequence.indexOf(current), neighbour = (step) => sequence[(at + step + sequence.length) % sequence.length];
    document.title = `${data.layer}, filter ${current}`;
    byId("number").textContent = byId("crumb").textContent = current;
    byId("go").value = current;
    byId("prev").href = address(neighbour(-1), view);
    byId("next").href = address(neighbour(1), view);
    byId("up").href = byId("up").getAttribute("href").split("#")[0] + address(current, view);
    showVerdict(byId("verdict"), facts.verdict);
    const hurt = facts.classes_hurt && `. Without it these classes lose most: ${facts.classes_hurt}`;
    byId("reason").textContent = facts.reason && `– ${facts.reason}${hurt || ""}.`;
    for (const cell of document.querySelectorAll("td[data-key]")) {
      cell.textContent = facts[cell.dataset.key] ?? "not measured";
    }
    if (byId("weaker")) byId("weaker").hidden = !facts.weaker || !facts.patches.length;
    showClasses(facts);
    showSimilar(facts);
    showUsers(facts);
    const asked = current;
    loadSheet("../", data.slug, current).then((image) => {
      if (asked !== current) return;
      sheet = image;
      showPictures(facts);
    });
  }

  addEventListener("hashchange", show);
  byId("go").addEventListener("change", (event) => { location.hash = address(event.target.value, readAddress().view); });
  for (const choice of document.querySelectorAll("input[name=image]")) choice.addEventListener("input", showResponse);
  byId("viewer-copy").addEventListener("click", async () => {
    const blob = await new Promise((done) => {
      const image = byId("viewer-image"), canvas = element("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      canvas.getContext("2d").drawImage(image, 0, 0);
      canvas.toBlob(done);
    });
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, .epochs button") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (byId("viewer").open) return;
    if (event.key === "ArrowLeft") byId("prev").click();
    if (event.key === "ArrowRight") byId("next").click();
    if (event.key === "Escape") byId("up").click();
  });
  show();
}

// The page of the classes: the filters that speak for and against a class, on an image or on the mean of its images.
function classes() {
  const data = window.filterscopeClasses, shown = window.filterscopeLinks[data.layer], label = byId("class"), choices = [...document.querySelectorAll("input[name=image]")];

  function rows(id, values, image) {
    const largest = Math.max(...values.map(([, value]) => Math.abs(value)), 1e-12), sign = id === "for" ? "+" : "−";
    byId(id).replaceChildren(...values.map(([number, value]) => {
      const item = element("li"), link = element(shown ? "a" : "span"), both = element("span", "", "both"), meter = element("span", "", "meter");
      if (shown) {
        const { slug, responses } = shown;
        link.href = filterAddress("", slug, number);
        both.append(thumbnail("", shown, number));
        if (image !== "mean") both.append(responseImage("", slug, number, responses[image], `response of filter ${number}`));
        link.append(both);
      }
      link.append(`filter ${number}`);
      meter.style.width = `${(100 * Math.abs(value)) / largest}%`;
      item.append(link, `: ${sign}${value}`, meter);
      return item;
    }));
    if (!values.length) byId(id).append(element("li", "no filter"));
  }

  function show() {
    const image = choices.find((each) => each.checked).value, chosen = Number(label.value), name = data.classes[chosen];
    const found = image === "mean" ? data.means[chosen] : data.images[image].classes[chosen];
    for (const each of document.querySelectorAll(".chosen")) each.textContent = name;
    rows("for", found ? found.for : [], image);
    rows("against", found ? found.against : [], image);
    let text = found ? `The mean of ${found.images} images of ${name}.` : `There are no images of ${name}.`;
    if (image !== "mean") {
      const { logits } = data.images[image], order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, 3);
      text = `Logit of ${name}: ${logits[chosen]}. Largest logits: ${order.map((each) => `${data.classes[each]} ${logits[each]}`).join("; ")}.`;
    }
    byId("status").textContent = text;
    history.replaceState(null, "", `#class=${chosen}&image=${image}`);
  }

  function read() {
    const parts = new URLSearchParams(location.hash.slice(1)), asked = choices.find((each) => each.value === parts.get("image"));
    if (label.querySelector(`option[value="${Number(parts.get("class"))}"]`)) label.value = Number(parts.get("class"));
    (asked || choices[0]).checked = true;
    show();
  }
  for (const control of [label, ...choices]) control.addEventListener("input", show);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", read);
  read();
}

({ overview, classes, runs: orderRuns, layer: grid, compare: grid, filter })[document.body.dataset.page]?.();
