// The gallery and the plot's legend. Data arrives through scripts that call riebench.add: a page opened from disk may not
// fetch files. Every word from the results is set as text, never as HTML.
"use strict";
(() => {
  const BATCH = 60;
  const SEARCH_DELAY = 150;
  const GAIN = "clip_gain";
  const DISTANCE = "lpips";
  // What a stored mask may claim, as a picture may.
  const MOST_PIXELS = 2 ** 26;
  const arrived = new Map();
  const asked = new Map();
  const $ = (id) => document.getElementById(id);
  let index = null;
  // What the cards are chosen by, the cards that are there, and the edit that is shown in full.
  let filters = {};
  let items = [];
  let shown = BATCH;
  let turn = 0;
  let one = null;
  let oneTurn = 0;

  window.riebench = {
    add(key, data) {
      arrived.set(key, data);
      if (key === "index") start(data);
    },
  };

  function load(part) {
    if (!asked.has(part.key)) {
      asked.set(part.key, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        // A model may be called what means something else in an address.
        script.src = part.file.split("/").map(encodeURIComponent).join("/");
        script.onload = () => resolve(arrived.get(part.key));
        script.onerror = () => {
          asked.delete(part.key);
          reject(new Error(`${part.file} is missing from this folder`));
        };
        document.head.append(script);
      }));
    }
    return asked.get(part.key);
  }

  function make(tag, text, attributes = {}) {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  // --- what is chosen -------------------------------------------------------------------------------------------

  const groupOf = (run) => index.groups.find((some) => some.name === run) ?? index.groups[0];
  const categoryOf = (run, name) => groupOf(run).categories.find((some) => some.name === name);
  const settingOf = (run, name) => groupOf(run).settings.find((some) => some.name === name);
  const runs = () => index.groups.filter((some) => some.categories.length).map((some) => some.name);
  const among = (list, wanted, otherwise) => (list.includes(wanted) ? wanted : otherwise ?? list[0]);
  const nearest = (list, wanted) =>
    list.reduce((best, some) => (Math.abs(some - wanted) < Math.abs(best - wanted) ? some : best), list[0]);
  const numeric = (value) => (Number.isFinite(Number(value)) ? Number(value) : 1);

  // Whatever was asked for, by a link or by an earlier choice, becomes something that there is.
  function settle(wanted, categories) {
    const run = among(runs(), wanted.run);
    const there = groupOf(run).categories.filter((some) => categories === null || some.name === categories);
    const settings = groupOf(run).settings.map((some) => some.name)
      .filter((name) => there.some((some) => some.files[name]));
    const setting = among(settings, wanted.setting, among(settings, groupOf(run).leading));
    const { blocks, strengths } = settingOf(run, setting);
    return {
      run, setting, settings, blocks: among(blocks, wanted.blocks, among(blocks, "all")),
      strength: nearest(strengths, wanted.strength === undefined ? 1 : numeric(wanted.strength)),
    };
  }

  function settleFilters(wanted) {
    const found = settle(wanted, null);
    const names = groupOf(found.run).categories.filter((some) => some.files[found.setting]).map((some) => some.name);
    filters = {
      ...found, names, category: among(["", ...names], wanted.category ?? ""),
      seed: among(["", ...groupOf(found.run).seeds.map(String)], String(wanted.seed ?? "")), search: wanted.search ?? "",
    };
  }

  function settleOne(wanted) {
    const run = among(runs(), wanted.run);
    const category = among(groupOf(run).categories.map((some) => some.name), wanted.category);
    const examples = categoryOf(run, category).examples;
    one = { ...settle({ ...wanted, run }, category), category, example: among(examples, wanted.example), seed: wanted.seed };
  }

  function fromHash() {
    const text = decodeHash(location.hash.slice(1));
    if (!text.startsWith("show&")) return null;
    const given = new URLSearchParams(text.slice(5));
    const names = ["run", "category", "example", "setting", "blocks", "seed", "strength"];
    return Object.fromEntries(names.map((name) => [name, given.get(name) ?? undefined]));
  }

  // Some programs escape the ampersands of a link that is sent around.
  function decodeHash(text) {
    return text.startsWith("show%26") ? text.replaceAll("%26", "&").replaceAll("%3D", "=") : text;
  }

  function toHash(some) {
    const names = ["run", "category", "example", "setting", "blocks", "strength", "seed"];
    return `#show&${new URLSearchParams(names.map((name) => [name, String(some[name])]))}`;
  }

  // --- cards ----------------------------------------------------------------------------------------------------

  function fill(select, values, chosen, words = (value) => value) {
    const same = select.options.length === values.length
      && values.every((value, i) => select.options[i].value === String(value) && select.options[i].text === words(value));
    if (!same) select.replaceChildren(...values.map((value) => make("option", words(value), { value })));
    select.value = String(chosen);
    select.disabled = values.length < 2;
  }

  function unitsOf(data) {
    const gain = data.metrics.indexOf(GAIN);
    const distance = data.metrics.indexOf(DISTANCE);
    return data.units.map(([id, hash, blocks, strength, seed, picture, note, values, verdict]) => (
      { id, hash, blocks, strength, seed, picture, note, values, verdict, gain: values[gain], distance: values[distance] }));
  }

  // The best first; edits without a gain last. Equal gains stand in the order of names and seeds.
  function byGain(a, b) {
    const [x, y] = [a.gain, b.gain].map((gain) => (typeof gain === "number" ? gain : -Infinity));
    if (x !== y) return x > y ? -1 : 1;
    return a.id < b.id ? -1 : a.id > b.id ? 1 : a.seed - b.seed;
  }

  function places(count) {
    const found = new Map();
    if (count) found.set(0, "best");
    if (count > 2) found.set((count - 1) >> 1, "median");
    if (count > 1) found.set(count - 1, "worst");
    return found;
  }

  function chosenOf(category, shared, data) {
    const wanted = filters.search.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (unit) => [unit.id, ...(shared.prompts[`${unit.id}|${unit.hash}`] ?? [])].join(" ").toLowerCase();
    const ranked = unitsOf(data)
      .filter((unit) => unit.blocks === filters.blocks && unit.strength === filters.strength)
      .filter((unit) => !filters.seed || String(unit.seed) === filters.seed)
      .filter((unit) => !wanted.length || wanted.every((word) => text(unit).includes(word)))
      .sort(byGain);
    const scored = ranked.filter((unit) => typeof unit.gain === "number").length;
    const named = places(scored);
    const found = ranked.map((unit, place) => ({ category, unit, shared, place: named.get(place), of: scored }));
    return isWhole() ? found : found.filter((item) => item.place);
  }

  // Whether every edit is wanted, and not only the best, median and worst of each category.
  const isWhole = () => Boolean(filters.category || filters.search.trim());

  async function showCards(wanted) {
    const mine = ++turn;
    settleFilters(wanted);
    fillFilters();
    items = [];
    shown = BATCH;
    $("cards").replaceChildren();
    $("more").hidden = true;
    const { run, setting } = filters;
    const parts = (filters.category ? [filters.category] : filters.names).map((name) => categoryOf(run, name));
    try {
      for (const part of parts) {
        const [shared, data] = await Promise.all([load(part.shared), load(part.files[setting])]);
        // A later choice has overtaken this one.
        if (mine !== turn) return;
        const start = items.length;
        items.push(...chosenOf(part, shared, data));
        append(start);
      }
      count(parts.length);
    } catch (problem) {
      if (mine === turn) $("count").textContent = problem.message;
    }
  }

  function count(categories) {
    const edits = (n) => `${n} ${n === 1 ? "edit" : "edits"}`;
    if (!items.length) $("count").textContent = "No edit fits these choices.";
    else if (isWhole()) $("count").textContent = `${edits(items.length)}, the best first.`;
    else $("count").textContent = `${edits(items.length)}: best, median and worst of ${categories} ${categories === 1 ? "category" : "categories"}.`;
  }

  function append(start) {
    const last = Math.min(shown, items.length);
    for (const item of items.slice(start, last)) listOf(item.category).append(card(item));
    $("more").hidden = shown >= items.length;
    $("more").textContent = `Show more (${last} of ${items.length} are shown)`;
  }

  function listOf(category) {
    const end = $("cards").lastElementChild;
    if (end?.dataset.category === category.name) return end.lastElementChild;
    const section = make("section", null, { "data-category": category.name });
    section.append(make("h3", category.title), make("ul", null, { class: "cards" }));
    $("cards").append(section);
    return section.lastElementChild;
  }

  function card({ category, unit, shared, place, of }) {
    const { run, setting } = filters;
    const name = `${unit.id}|${unit.hash}`;
    const [source, target] = shared.prompts[name] ?? ["not at hand", "not at hand"];
    const pair = shared.pairs[`${name}|${unit.seed}`] ?? { source: null, target: null };
    const item = make("li", null, { class: `card${place ? ` ${place}` : ""}` });
    const button = make("button", null, { type: "button" });
    if (groupOf(run).pictures) {
      for (const [role, path] of [["source", pair.source], ["edited", unit.picture], ["target", pair.target]]) {
        const frame = make("span", null, { class: "thumb" });
        frame.append(path ? make("img", null, { src: path, alt: "", loading: "lazy", decoding: "async" })
          : make("span", "no picture", { class: "none" }), make("span", role));
        button.append(frame);
      }
      button.setAttribute("aria-label", `Open ${unit.id}, seed ${unit.seed}, in full`);
    } else button.append(make("span", `Scores of ${unit.id}, seed ${unit.seed}`));
    button.addEventListener("click", () => showOne({
      run, setting, category: category.name, example: unit.id, blocks: unit.blocks, strength: unit.strength, seed: unit.seed,
    }));
    if (place) item.append(make("p", `${place} of ${of}`, { class: "place" }));
    const words = make("dl");
    words.append(make("dt", "Source"), make("dd", source), make("dt", "Target"), make("dd", target));
    item.append(button, words, make("p", facts(unit), { class: "facts" }), make("p", verdict(unit), { class: "verdict" }));
    return item;
  }

  function facts(unit) {
    return [`blocks ${unit.blocks}`, `gain ${words(GAIN, unit.gain)}`, `LPIPS ${words(DISTANCE, unit.distance)}`,
      `seed ${unit.seed}`].join(" · ");
  }

  const verdict = (unit) => unit.note || index.verdicts[unit.verdict];

  function fillFilters() {
    const { run } = filters;
    const strengths = settingOf(run, filters.setting).strengths;
    const title = (name) => (name ? categoryOf(run, name).title : "all categories");
    fill($("choose-run"), runs(), run);
    fill($("choose-setting"), filters.settings, filters.setting);
    fill($("choose-category"), ["", ...filters.names], filters.category, title);
    fill($("choose-blocks"), settingOf(run, filters.setting).blocks, filters.blocks);
    fill($("choose-strength"), strengths.map(String), filters.strength);
    fill($("choose-seed"), ["", ...groupOf(run).seeds.map(String)], filters.seed, (seed) => seed || "all seeds");
    $("setting-about").textContent = settingOf(run, filters.setting).description;
    $("gallery").classList.toggle("small", groupOf(run).size <= 256);
  }

  // --- one edit in full -----------------------------------------------------------------------------------------

  async function showOne(wanted) {
    const mine = ++oneTurn;
    settleOne(wanted);
    const part = categoryOf(one.run, one.category);
    let loaded;
    try {
      loaded = await Promise.all([load(part.shared), load(part.files[one.setting]), load(part.masks)]);
    } catch (problem) {
      if (mine !== oneTurn) return;
      tell(problem.message);
      return open();
    }
    if (mine !== oneTurn) return;
    const [shared, data, masks] = loaded;
    const units = unitsOf(data).filter((unit) => unit.id === one.example);
    const seeds = [...new Set(units.map((unit) => unit.seed))].sort((a, b) => a - b);
    one.seed = among(seeds.map(String), String(one.seed ?? ""), String(seeds[0] ?? 0));
    fillChoices(seeds);
    const mineUnits = units.filter((unit) => unit.blocks === one.blocks && String(unit.seed) === one.seed);
    showUnit(mineUnits.find((unit) => unit.strength === one.strength), shared, data, masks);
    showStrengths(mineUnits, data);
    const hash = toHash(one);
    $("this-link").href = hash;
    $("copied").textContent = "";
    history.replaceState(null, "", hash);
    open();
  }

  function open() {
    $("one").classList.toggle("small", groupOf(one.run).size <= 256);
    $("one").classList.toggle("without-pictures", !groupOf(one.run).pictures);
    if (!$("one").open) $("one").showModal();
  }

  function fillChoices(seeds) {
    const { blocks, strengths } = settingOf(one.run, one.setting);
    const { title, examples } = categoryOf(one.run, one.category);
    $("one-title").textContent = `${one.example} (${title})`;
    fill($("one-setting"), one.settings, one.setting);
    fill($("one-blocks"), blocks, one.blocks);
    fill($("one-seed"), seeds.map(String), one.seed);
    const slider = $("one-strength");
    slider.max = String(strengths.length - 1);
    slider.value = String(strengths.indexOf(one.strength));
    slider.disabled = strengths.length < 2;
    slider.setAttribute("aria-valuetext", `strength ${one.strength}`);
    $("strength-value").textContent = `${one.strength}${strengths.length < 2 ? " (the only one)" : ""}`;
    const place = examples.indexOf(one.example);
    $("previous").disabled = place <= 0;
    $("next").disabled = place >= examples.length - 1;
  }

  function tell(text) {
    $("note").textContent = text;
    $("note").hidden = !text;
  }

  function picture(frame, path, alt) {
    const there = frame.querySelector("img");
    if (!path) return frame.replaceChildren(make("span", "no picture"));
    if (there && there.getAttribute("src") === path) return there.setAttribute("alt", alt);
    return frame.replaceChildren(make("img", null, { src: path, alt, loading: "lazy", decoding: "async" }));
  }

  // Nothing reads pixels, which a page opened from disk may not: the browser lays one picture over the other.
  function difference(frame, source, edited) {
    if (!source || !edited) return frame.replaceChildren(make("span", "no picture"));
    const box = make("div", null, { class: "difference", role: "img", "aria-label": "difference of edited and source picture" });
    for (const path of [source, edited]) box.append(make("img", null, { src: path, alt: "", loading: "lazy" }));
    frame.replaceChildren(box);
    return brighten();
  }

  function brighten() {
    for (const box of document.querySelectorAll(".difference")) box.style.filter = `brightness(${$("brightness").value})`;
  }

  function region(frame, path, masks, side) {
    const runs = masks?.[side];
    const [height, width] = Array.isArray(masks?.size) ? masks.size : [];
    const drawable = height > 0 && width > 0 && height * width <= MOST_PIXELS;
    if (!drawable || !Array.isArray(runs)) return frame.replaceChildren(make("span", "no mask"));
    const canvas = make("canvas", null, { width, height, "aria-hidden": "true" });
    const drawing = canvas.getContext("2d");
    const pixels = drawing.createImageData(width, height);
    const colour = new Uint32Array(pixels.data.buffer);
    let covered = 0;
    for (let i = 0; i < runs.length; i += 2) {
      colour.fill(0xa02040ff, runs[i], runs[i] + runs[i + 1]);
      covered += runs[i + 1];
    }
    drawing.putImageData(pixels, 0, 0);
    const share = `${Math.round((100 * covered) / (width * height))} % of the picture`;
    const under = path ? [make("img", null, { src: path, alt: `${side} region: ${share}`, loading: "lazy" })] : [];
    frame.title = share;
    return frame.replaceChildren(...under, canvas);
  }

  function showUnit(unit, shared, data, masks) {
    const name = unit ? `${unit.id}|${unit.hash}` : "";
    const pair = (unit && shared.pairs[`${name}|${unit.seed}`]) || { source: null, target: null };
    const regions = unit ? masks[`${name}|${unit.seed}`] : null;
    const [source, target] = (unit && shared.prompts[name]) || ["not at hand", "not at hand"];
    $("source-prompt").textContent = source;
    $("target-prompt").textContent = target;
    picture($("show-source"), pair.source, `source picture: ${source}`);
    picture($("show-target"), pair.target, `target picture: ${target}`);
    picture($("show-edited"), unit?.picture, `edited by ${one.setting}, blocks ${one.blocks}, strength ${one.strength}`);
    $("edited-caption").textContent = unit ? `edited: ${facts(unit)} · ${verdict(unit)}` : "edited";
    difference($("show-difference"), pair.source, unit?.picture);
    region($("show-source-mask"), pair.source, regions, "source");
    region($("show-target-mask"), pair.target, regions, "target");
    tell(unit ? unit.note : "This edit was not made.");
    const body = $("scores").tBodies[0];
    const rows = data.metrics.map((metric, i) => [metric, unit?.values[i]]).filter(([, value]) => value !== null && value !== undefined);
    body.replaceChildren(...rows.map(([metric, value]) => {
      const row = make("tr");
      row.append(make("th", metric, { scope: "row" }), make("td", words(metric, value)), make("td", index.formats[metric]?.title ?? ""));
      return row;
    }));
    const main = rows.slice(0, 3).map(([metric, value]) => `${metric.replaceAll("_", " ")} ${words(metric, value)}`);
    $("live").textContent = `Strength ${one.strength}: ${main.join(", ") || "no scores"}${unit ? `; ${verdict(unit)}` : ""}`;
  }

  function words(metric, value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "string") return value.replaceAll("_", " ");
    const form = index.formats[metric];
    if (!form?.scale) return String(Number(value.toPrecision(4)));
    const scaled = value * form.scale;
    if (!Number.isFinite(scaled)) return value > 0 ? "> 1e+300" : "< -1e+300";
    if (Math.abs(scaled) >= 1e9) return (form.signed && scaled > 0 ? "+" : "") + scaled.toExponential(2);
    const text = scaled.toFixed(form.decimals);
    const number = Number(text) === 0 ? (0).toFixed(form.decimals) : text;
    return form.signed && Number(text) > 0 ? `+${number}` : number;
  }

  function showStrengths(units, data) {
    const list = [...units].sort((a, b) => a.strength - b.strength);
    $("strengths-box").hidden = list.length < 2;
    const known = data.metrics.map((metric, i) => [metric, i]).filter(([metric]) => index.formats[metric]?.scale).slice(0, 4);
    const head = make("tr");
    head.append(...["strength", ...known.map(([metric]) => metric)].map((name) => make("th", name, { scope: "col" })));
    $("strengths").tHead.replaceChildren(head);
    $("strengths").tBodies[0].replaceChildren(...list.map((unit) => {
      const row = make("tr", null, unit.strength === one.strength ? { "aria-current": "true" } : {});
      row.append(make("th", String(unit.strength), { scope: "row" }));
      row.append(...known.map(([metric, i]) => make("td", words(metric, unit.values[i]))));
      return row;
    }));
  }

  // --- events ---------------------------------------------------------------------------------------------------

  function listen() {
    for (const name of ["run", "setting", "category", "blocks", "strength", "seed"]) {
      $(`choose-${name}`).addEventListener("change", (event) => showCards({ ...filters, [name]: event.target.value }));
    }
    let waiting = 0;
    $("search").addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => showCards({ ...filters, search: event.target.value }), SEARCH_DELAY);
    });
    $("more").addEventListener("click", () => {
      const start = shown;
      shown += BATCH;
      append(start);
    });
    for (const name of ["setting", "blocks", "seed"]) {
      $(`one-${name}`).addEventListener("change", (event) => showOne({ ...one, [name]: event.target.value }));
    }
    $("one-strength").addEventListener("input", (event) =>
      showOne({ ...one, strength: settingOf(one.run, one.setting).strengths[Number(event.target.value)] }));
    const step = (by) => {
      const { examples } = categoryOf(one.run, one.category);
      showOne({ ...one, example: examples[examples.indexOf(one.example) + by] });
    };
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("brightness").addEventListener("change", brighten);
    $("copy-link").addEventListener("click", copyLink);
    $("close").addEventListener("click", () => $("one").close());
    $("one").addEventListener("close", () => history.replaceState(null, "", "#gallery"));
    for (const form of ["filters", "choices"]) $(form).addEventListener("submit", (event) => event.preventDefault());
    window.addEventListener("hashchange", () => {
      const wanted = fromHash();
      if (wanted) showOne(wanted);
    });
  }

  async function copyLink() {
    const link = $("this-link").href;
    try {
      await navigator.clipboard.writeText(link);
      $("copied").textContent = "Copied.";
    } catch {
      $("copied").textContent = "This browser does not let the page copy; copy the link beside this instead.";
    }
  }

  function listenToLegends() {
    for (const legend of document.querySelectorAll("fieldset[data-plot]")) {
      legend.addEventListener("change", (event) => {
        for (const series of event.target.dataset.series.split(" ")) {
          for (const mark of document.querySelectorAll(`[id^="${legend.dataset.plot}-s${series}-"]`)) {
            mark.style.display = event.target.checked ? "" : "none";
          }
        }
      });
    }
  }

  function start(data) {
    index = data;
    listenToLegends();
    if (!runs().length) return;
    listen();
    $("filters").hidden = false;
    const wanted = fromHash();
    showCards(wanted ? { run: wanted.run, setting: wanted.setting } : {});
    if (wanted) {
      $("gallery").scrollIntoView();
      showOne(wanted);
    }
  }
})();
