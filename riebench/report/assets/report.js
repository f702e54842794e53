// The gallery and the plot's legend. Data arrives through scripts that call riebench.add: a page opened from disk may not
// fetch files. Every word from the results is set as text, never as HTML.
"use strict";
(() => {
  const BATCH = 60;
  // What a stored mask may claim, as a picture may.
  const MOST_PIXELS = 2 ** 26;
  const arrived = new Map();
  const asked = new Map();
  const $ = (id) => document.getElementById(id);
  let index = null;
  let state = null;
  let shown = BATCH;
  let turn = 0;

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

  const group = () => index.groups.find((one) => one.name === state.run) ?? index.groups[0];
  const category = () => group().categories.find((one) => one.name === state.category);
  const setting = () => group().settings.find((one) => one.name === state.setting);
  const among = (list, wanted, otherwise) => (list.includes(wanted) ? wanted : otherwise ?? list[0]);
  const nearest = (list, wanted) =>
    list.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), list[0]);

  // Whatever was asked for, by a link or by an earlier choice, becomes something that there is.
  function settle(wanted) {
    const names = index.groups.filter((one) => one.categories.length).map((one) => one.name);
    state = { ...wanted, run: among(names, wanted.run) };
    state.category = among(group().categories.map((one) => one.name), wanted.category);
    state.example = among(category().examples, wanted.example);
    const settings = group().settings.map((one) => one.name).filter((name) => category().files[name]);
    const first = settings.find((name) => group().settings.find((one) => one.name === name).blocks.length > 1);
    state.setting = among(settings, wanted.setting, first ?? settings[0]);
    const blocks = setting().blocks;
    state.blocks = among(blocks, wanted.blocks, among(blocks, "all"));
    state.strength = nearest(setting().strengths, Number.isFinite(wanted.strength) ? wanted.strength : 1);
    return settings;
  }

  function fromHash() {
    const text = decodeHash(location.hash.slice(1));
    if (!text.startsWith("show&")) return null;
    const given = new URLSearchParams(text.slice(5));
    const strength = given.has("strength") ? Number(given.get("strength")) : undefined;
    const names = ["run", "category", "example", "setting", "blocks", "seed"];
    return { ...Object.fromEntries(names.map((name) => [name, given.get(name) ?? undefined])), strength };
  }

  // Some programs escape the ampersands of a link that is sent around.
  function decodeHash(text) {
    return text.startsWith("show%26") ? text.replaceAll("%26", "&").replaceAll("%3D", "=") : text;
  }

  function toHash(some = state) {
    const names = ["run", "category", "example", "setting", "blocks", "strength", "seed"];
    return `#show&${new URLSearchParams(names.map((name) => [name, String(some[name])]))}`;
  }

  // --- showing --------------------------------------------------------------------------------------------------

  function fill(select, values, chosen, words = (value) => value) {
    const same = select.options.length === values.length
      && values.every((value, i) => select.options[i].value === String(value) && select.options[i].text === words(value));
    if (!same) select.replaceChildren(...values.map((value) => make("option", words(value), { value })));
    select.value = String(chosen);
    select.disabled = values.length < 2;
  }

  function unitsOf(data, example) {
    return data.units
      .filter((row) => row[0] === example)
      .map(([id, hash, blocks, strength, seed, picture, note, values]) => (
        { id, hash, blocks, strength, seed, picture, note, values }));
  }

  async function show(wanted, { link = true } = {}) {
    const mine = ++turn;
    const settings = settle(wanted);
    let shared;
    let data;
    try {
      [shared, data] = await Promise.all([load(category().shared), load(category().files[state.setting])]);
    } catch (problem) {
      if (mine === turn) tell(problem.message);
      return;
    }
    // A later choice has overtaken this one.
    if (mine !== turn) return;
    const units = unitsOf(data, state.example);
    const seeds = [...new Set(units.map((unit) => unit.seed))].sort((a, b) => a - b);
    state.seed = among(seeds.map(String), String(state.seed ?? ""), String(seeds[0] ?? 0));
    fillChoices(settings, seeds);
    const mineUnits = units.filter((unit) => unit.blocks === state.blocks && String(unit.seed) === state.seed);
    const unit = mineUnits.find((one) => one.strength === state.strength);
    showUnit(unit, shared, data);
    showStrengths(mineUnits, data);
    showAll(data);
    const hash = toHash();
    $("this-link").href = hash;
    $("copied").textContent = "";
    if (link) history.replaceState(null, "", hash);
  }

  function fillChoices(settings, seeds) {
    const strengths = setting().strengths;
    fill($("choose-run"), index.groups.filter((one) => one.categories.length).map((one) => one.name), state.run);
    const title = (name) => group().categories.find((one) => one.name === name).title;
    fill($("choose-category"), group().categories.map((one) => one.name), state.category, title);
    fill($("choose-example"), category().examples, state.example);
    fill($("choose-setting"), settings, state.setting);
    fill($("choose-blocks"), setting().blocks, state.blocks);
    fill($("choose-seed"), seeds.map(String), state.seed);
    const slider = $("choose-strength");
    slider.max = String(strengths.length - 1);
    slider.value = String(strengths.indexOf(state.strength));
    slider.disabled = strengths.length < 2;
    slider.setAttribute("aria-valuetext", `strength ${state.strength}`);
    $("strength-value").textContent = `${state.strength}${strengths.length < 2 ? " (the only one)" : ""}`;
    const place = category().examples.indexOf(state.example);
    $("previous").disabled = place <= 0;
    $("next").disabled = place >= category().examples.length - 1;
    $("gallery").classList.toggle("small", group().size <= 256);
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

  function showUnit(unit, shared, data) {
    const name = unit ? `${unit.id}|${unit.hash}` : "";
    const pair = (unit && shared.pairs[`${name}|${unit.seed}`]) || { source: null, target: null, masks: null };
    const [source, target] = (unit && shared.prompts[name]) || ["not at hand", "not at hand"];
    $("setting-about").textContent = setting().description;
    $("source-prompt").textContent = source;
    $("target-prompt").textContent = target;
    picture($("show-source"), pair.source, `source picture: ${source}`);
    picture($("show-target"), pair.target, `target picture: ${target}`);
    picture($("show-edited"), unit?.picture, `edited by ${state.setting}, blocks ${state.blocks}, strength ${state.strength}`);
    difference($("show-difference"), pair.source, unit?.picture);
    region($("show-source-mask"), pair.source, pair.masks, "source");
    region($("show-target-mask"), pair.target, pair.masks, "target");
    tell(unit ? unit.note : "This edit was not made.");
    const body = $("scores").tBodies[0];
    const rows = data.metrics.map((metric, i) => [metric, unit?.values[i]]).filter(([, value]) => value !== null && value !== undefined);
    body.replaceChildren(...rows.map(([metric, value]) => {
      const row = make("tr");
      row.append(make("th", metric, { scope: "row" }), make("td", words(metric, value)), make("td", index.formats[metric]?.title ?? ""));
      return row;
    }));
    const main = rows.slice(0, 3).map(([metric, value]) => `${metric.replaceAll("_", " ")} ${words(metric, value)}`);
    $("live").textContent = `Strength ${state.strength}: ${main.join(", ") || "no scores"}`;
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
      const row = make("tr", null, unit.strength === state.strength ? { "aria-current": "true" } : {});
      row.append(make("th", String(unit.strength), { scope: "row" }));
      row.append(...known.map(([metric, i]) => make("td", words(metric, unit.values[i]))));
      return row;
    }));
  }

  // Thumbnails come in batches, and the browser loads only those that are near the window.
  function showAll(data) {
    const chosen = new Map();
    for (const [id, , blocks, strength, seed, path] of data.units) {
      if (blocks === state.blocks && strength === state.strength && String(seed) === state.seed) chosen.set(id, path);
    }
    const examples = category().examples;
    shown = Math.max(shown, BATCH);
    $("all").replaceChildren(...examples.slice(0, shown).map((id) => {
      const item = make("li");
      const button = make("button", null, { type: "button", ...(id === state.example ? { "aria-current": "true" } : {}) });
      const path = chosen.get(id);
      button.append(path ? make("img", null, { src: path, alt: "", loading: "lazy", decoding: "async" })
        : make("span", "no picture", { class: "none" }));
      button.append(make("span", id));
      button.addEventListener("click", () => show({ ...state, example: id }).then(() => $("gallery").scrollIntoView()));
      item.append(button);
      return item;
    }));
    $("more").hidden = shown >= examples.length;
    $("more").textContent = `Show more (${Math.min(shown, examples.length)} of ${examples.length} are shown)`;
    $("more").onclick = () => {
      shown += BATCH;
      showAll(data);
    };
  }

  // --- events ---------------------------------------------------------------------------------------------------

  function listen() {
    const choices = { run: "choose-run", category: "choose-category", example: "choose-example", setting: "choose-setting",
      blocks: "choose-blocks", seed: "choose-seed" };
    for (const [name, id] of Object.entries(choices)) {
      $(id).addEventListener("change", (event) => {
        if (name === "run" || name === "category") shown = BATCH;
        show({ ...state, [name]: event.target.value });
      });
    }
    $("choose-strength").addEventListener("input", (event) =>
      show({ ...state, strength: setting().strengths[Number(event.target.value)] }));
    const step = (by) => show({ ...state, example: category().examples[category().examples.indexOf(state.example) + by] });
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("brightness").addEventListener("change", brighten);
    $("copy-link").addEventListener("click", copyLink);
    $("choices").addEventListener("submit", (event) => event.preventDefault());
    window.addEventListener("hashchange", () => {
      const wanted = fromHash();
      if (wanted) show(wanted);
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
        const start = `${legend.dataset.plot}-s${event.target.dataset.series}-`;
        for (const mark of document.querySelectorAll(`[id^="${start}"]`)) {
          mark.style.display = event.target.checked ? "" : "none";
        }
      });
    }
  }

  function start(data) {
    index = data;
    listenToLegends();
    if (!index.groups.some((one) => one.categories.length)) return;
    listen();
    $("choices").hidden = false;
    $("one").hidden = false;
    const wanted = fromHash();
    show(wanted ?? {}, { link: false }).then(() => wanted && $("gallery").scrollIntoView());
  }
})();
