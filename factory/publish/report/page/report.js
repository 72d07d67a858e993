// Everything that moves in a report. What rows say reaches the page as text nodes alone, never as markup.
"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// controls, marks of direction and halves of pairs would hide or turn about what stands beside them: they are shown
const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
function safely(text) {
  const parts = [];
  let last = 0;
  for (const found of text.matchAll(UNSAFE)) {
    if (found.index > last) parts.push(text.slice(last, found.index));
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(el("span", { class: "control", title: "U+" + code }, "U+" + code));
    last = found.index + 1;
  }
  parts.push(text.slice(last));
  return parts;
}
// [text, characters left out, where]
function cutText([text, left, at]) {
  if (!left) return safely(text);
  const told = el("span", { class: "left" }, ` … ${left.toLocaleString("en")} characters are left out here … `);
  return [...safely(text.slice(0, at)), told, ...safely(text.slice(at))];
}
const percent = (share, digits = 1) => (100 * share).toFixed(digits) + " %";
const nats = (hundredths) => (hundredths >= 9999 ? "∞" : (hundredths / 100).toFixed(2));

// ---- theme
const themes = ["auto", "light", "dark"];
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % 3];
  if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
  $("theme").textContent = "Theme: " + next;
});

// ---- charts
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  axis: { labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)", domainColor: "var(--line)",
    tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, labelLimit: 190 },
  legend: { labelColor: "var(--text)", titleColor: "var(--muted)", labelFontSize: 12, labelLimit: 260, symbolStrokeWidth: 2 },
  title: { color: "var(--text)", fontSize: 13, fontWeight: 600, anchor: "start", offset: 8 },
  bar: { discreteBandSize: { band: 0.6 } },
};
function showTip(handler, event, item, value) {
  const tip = $("tip");
  if (value === null || value === undefined || typeof value !== "object") { tip.hidden = true; return; }
  const list = el("dl");
  for (const [name, told] of Object.entries(value)) list.append(el("dt", {}, ...safely(name)), el("dd", {}, ...safely(String(told))));
  tip.replaceChildren(list);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18) + "px";
}
const views = [];
async function draw(place) {
  const spec = { ...data.charts[place.dataset.chart], config };
  const room = Math.max(260, Math.floor(place.clientWidth) - 4), parts = spec.hconcat || spec.concat;
  if (parts) {
    // as many side by side as there is room for; each needs some beside it for its labels
    const across = Math.min(spec.hconcat ? parts.length : spec.columns || parts.length, Math.max(1, Math.floor(room / 330)));
    const width = Math.floor((room - (across - 1) * spec.spacing) / across) - 72;
    spec.concat = parts.map((part) => ({ ...part, width }));
    spec.columns = across;
    delete spec.hconcat;
  } else {
    spec.width = room;
    spec.autosize = { type: "fit-x", contains: "padding" };
  }
  const parsed = vega.parse(vegaLite.compile(spec, { logger: vega.logger(vega.Error) }).spec, null, { ast: true });
  const view = new vega.View(parsed, { expr: vega.expressionInterpreter, renderer: "svg", container: place, hover: true,
    loader: vega.loader({ mode: "http", baseURL: "none:" }) });
  view.tooltip(showTip);
  view.description(place.dataset.told);
  await view.runAsync();
  const svg = place.querySelector("svg");
  // one picture with one name: the table beside it has the numbers
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", place.dataset.told);
  for (const inner of svg.querySelectorAll("[role], [aria-label], [aria-roledescription]")) {
    for (const name of ["role", "aria-label", "aria-roledescription", "aria-hidden"]) inner.removeAttribute(name);
  }
  views.push(view);
}
addEventListener("scroll", () => { $("tip").hidden = true; }, { passive: true });

// ---- where we are
const links = [...document.querySelectorAll("nav.bar a")];
const watch = new IntersectionObserver((seen) => {
  for (const one of seen) {
    if (one.isIntersecting) links.forEach((link) => link.classList.toggle("here", link.hash === "#" + one.target.id));
  }
}, { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("main section").forEach((section) => watch.observe(section));

// ---- rows: list and filter
const rows = data.rows;
// of two datasets the list has the first one's rows; those of the second are shown below them
const firsts = rows.map((_, number) => number).slice(0, Object.keys(data.twins).length || rows.length);
const filters = ["task", "level", "outcome", "reason", "why"];
let order = firsts;
let current = -1;
function chosen(name) { const field = $("f-" + name); return field ? field.value : ""; }
function fillFilters() {
  for (const name of filters) {
    const values = [...new Set(firsts.map((number) => rows[number][name]).filter((value) => value !== null))].sort();
    const field = $("f-" + name);
    if (field) field.append(...values.map((value) => el("option", { value }, value)));
  }
}
const KEYS = { file: null, hard: (row) => -(row.difficulty ?? -Infinity), unsure: (row) => row.confidence ?? Infinity, long: (row) => -row.tokens };
function applyFilter(openFirst) {
  const query = $("f-text").value.trim().toLowerCase();
  order = firsts.filter((number) => {
    const row = rows[number];
    return filters.every((name) => !chosen(name) || row[name] === chosen(name))
      && (!query || [row.id, row.task, row.about, row.reason || ""].some((text) => text.toLowerCase().includes(query)));
  });
  const key = KEYS[$("f-order").value];
  if (key) order.sort((a, b) => key(rows[a]) - key(rows[b]) || a - b);
  $("shown").value = `${order.length} of ${firsts.length} shown rows`;
  $("list").replaceChildren(...order.map((number) => el("li", {}, listed(number))));
  if (!order.length) $("list").append(el("li", { class: "empty" }, "No shown row is like this."));
  if (openFirst && order.length && !order.includes(current)) open(order[0], false);
  else markCurrent();
}
function listed(number) {
  const row = rows[number];
  const label = row.outcome === "accepted" ? (row.why === "drawn" ? "accepted" : row.why) : row.reason;
  return el("button", { type: "button", "data-row": number, onclick: () => open(number, true) },
    el("span", { class: "top" }, el("b", {}, ...safely(`${row.task} · ${row.level}`)), el("span", { class: "mark " + row.outcome }, ...safely(label))),
    el("div", { class: "about" }, ...safely(row.about || "no request")));
}
function markCurrent() {
  for (const button of $("list").querySelectorAll("button")) {
    const here = Number(button.dataset.row) === current;
    if (here) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
  }
}
function reasonRows(task, reason) {
  for (const name of filters) if ($("f-" + name)) $("f-" + name).value = "";
  $("f-text").value = "";
  const ended = firsts.filter((number) => rows[number].reason === reason);
  if (ended.length) $("f-reason").value = reason;
  // of a rare reason the shown rows may be of another task
  if (ended.some((number) => rows[number].task === task)) $("f-task").value = task;
  current = -1;
  applyFilter(true);
  if (!ended.length) {
    order = [];
    $("list").replaceChildren(el("li", { class: "empty" }, "No shown row ended so; ", el("code", {}, `factory show --reason ${reason}`), " finds them."));
    $("row").replaceChildren(el("p", { class: "empty" }, "No row is chosen."));
  }
  $("rows").scrollIntoView();
  // the heading takes the focus, so that whoever cannot see the jump is told of it
  $("rows-title").focus({ preventScroll: true });
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-reason]");
  if (button) reasonRows(...data.reasons[Number(button.dataset.reason)]);
});
$("list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const buttons = [...$("list").querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (next) { event.preventDefault(); next.focus(); }
});

// ---- one row
const unpacked = new Map();
async function unpack(number) {
  if (!unpacked.has(number)) {
    const bytes = Uint8Array.from(atob(data.packed[number]), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(number, JSON.parse(await new Response(stream).text()));
  }
  return unpacked.get(number);
}
async function open(number, focus) {
  current = number;
  markCurrent();
  const packed = await Promise.all(sides(number).map(unpack));
  if (current !== number) return;
  const place = $("row");
  place.replaceChildren(...packed.flatMap((row, side) => describe(rows[sides(number)[side]], row)));
  place.dataset.open = rows[number].id;
  if (focus) place.querySelector("h3").focus({ preventScroll: true });
}
// of two datasets the row of the same id stands below
const sides = (number) => (number in data.twins ? [number, data.twins[number]] : [number]);
function turn(kind, who, ...content) { return el("div", { class: "turn " + kind }, el("div", { class: "who" }, ...safely(who)), el("div", {}, ...content)); }
function block(name, text) { return el("pre", { tabindex: 0, role: "group", "aria-label": name }, ...cutText(text)); }
function pretty(text) {
  if (text[1]) return text;
  try { return [JSON.stringify(JSON.parse(text[0]), null, 2), 0, 0]; } catch { return text; }
}
function describe(about, row) {
  const nodes = [el("h3", { tabindex: -1 }, ...safely(`${about.task} · ${about.level}`), " ", el("span", { class: "mark " + about.outcome }, ...safely(about.reason || about.outcome)))];
  if (about.side) nodes.push(el("p", { class: "note" }, ...safely("of " + about.side)));
  nodes.push(el("ul", { class: "chips" }, ...chips(about, row).map(([name, value]) => el("li", {}, name + " ", el("b", {}, ...safely(String(value)))))));
  if (row.findings.length) nodes.push(turn("", about.outcome === "accepted" ? "findings" : "why not", el("ul", { class: "findings" }, ...row.findings.map((text) => el("li", {}, ...cutText(text))))));
  if (row.strip) nodes.push(...strip(row));
  for (const [role, ...text] of row.prompt) nodes.push(turn(role, role, role === "system" && row.prompt.length > 1
    ? el("details", {}, el("summary", {}, "system prompt"), block("system", text)) : block(role, text)));
  if (row.tools) nodes.push(turn("", "tools", el("details", {}, el("summary", {}, "what it may call"), block("tools", pretty(row.tools)))));
  if (row.reasoning && row.reasoning[0]) nodes.push(turn("reasoning", "reasoning",
    el("details", {}, el("summary", {}, `${(row.reasoning[0].length + row.reasoning[1]).toLocaleString("en")} characters`), block("reasoning", row.reasoning))));
  if (row.text) nodes.push(turn("answer", "what it wrote", block("what it wrote", row.text)));
  else if (row.answer) nodes.push(turn("answer", "answer", block("answer", pretty(row.answer))));
  if (row.judge) nodes.push(turn("", "judge", block("judge", row.judge)));
  row.history.forEach((attempt, number) => nodes.push(turn("", `attempt ${number + 1}`, el("details", {}, el("summary", {}, ...safely(attempt.reason)),
    el("ul", { class: "findings" }, ...attempt.findings.map((text) => el("li", {}, ...cutText(text)))), block("attempt", attempt.text)))));
  if (row.scenario[0]) nodes.push(turn("", "made from", el("details", {}, el("summary", {}, "scenario"), block("scenario", pretty(row.scenario)))));
  return nodes;
}
function chips(about, row) {
  const told = [["id", about.id], ["tokens", `${row.prompt_tokens.toLocaleString("en")} + ${about.tokens.toLocaleString("en")}`]];
  if (row.facts.reasoning_tokens) told.push(["reasoning", row.facts.reasoning_tokens.toLocaleString("en")]);
  for (const [name, value] of Object.entries(row.measures)) told.push([name.replaceAll("_", " "), Number(value.toPrecision(4))]);
  if (row.facts.attempt) told.push(["attempt", row.facts.attempt + 1]);
  if (row.facts.source_row) told.push(["source row", row.facts.source_row]);
  if (row.facts.finish_reason) told.push(["ended by", row.facts.finish_reason]);
  return told;
}

// ---- the token strip
const STEPS = [5, 30, 100, 200, 350]; // hundredths of a nat
let colouring = "surprise";
let strips = 0;
function strip(row) {
  const s = row.strip, prefix = `t${strips++}-`, count = s.tokens.length;
  const shape = el("div", { class: "strip", role: "listbox", tabindex: 0, "aria-label": "completion tokens; arrow keys go from token to token" });
  const inspect = el("div", { class: "inspect", "aria-live": "polite" });
  const forced = new Set(s.forced), places = placesOfTokens(s);
  const spans = s.tokens.map((place, t) => {
    const raw = s.texts[place];
    const text = s.spelt ? raw : `⟨${raw}⟩`;
    const span = el("span", { id: prefix + t, role: "option", "aria-selected": "false",
      "aria-label": text.trim() ? null : JSON.stringify(text) }, ...(text ? safely(visible(text)) : ["␀"]));
    if (forced.has(t)) span.classList.add("forced");
    if (!s.candidates[t].length) span.classList.add("mute");
    return span;
  });
  const paint = () => spans.forEach((span, t) => {
    const value = s[colouring][t], level = STEPS.filter((step) => value >= step).length;
    for (let i = 1; i <= 5; i++) span.classList.toggle("c" + i, i === level);
  });
  let at = -1;
  const select = (t, scroll) => {
    if (t < 0 || t >= count) return;
    if (at >= 0) { spans[at].classList.remove("at"); spans[at].setAttribute("aria-selected", "false"); }
    at = t;
    spans[t].classList.add("at");
    spans[t].setAttribute("aria-selected", "true");
    shape.setAttribute("aria-activedescendant", prefix + t);
    inspect.replaceChildren(...tell(row, s, t, forced, places[t]));
    if (scroll) {
      const box = spans[t].offsetTop - shape.offsetTop;
      if (box < shape.scrollTop + 20 || box > shape.scrollTop + shape.clientHeight - 40) shape.scrollTop = box - shape.clientHeight / 3;
    }
  };
  const least = s.surprise.map((value, t) => [value, t]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, 10).map(([, t]) => t);
  const leastByEntropy = s.entropy.map((value, t) => [value, t]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, 10).map(([, t]) => t);
  shape.addEventListener("pointerover", (event) => { const t = spans.indexOf(event.target.closest("[role=option]")); if (t >= 0) select(t, false); });
  shape.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -count, End: count, PageDown: 50, PageUp: -50 };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    select(Math.max(0, Math.min(count - 1, at + step)), true);
  });
  const seam = Math.min(s.answer_start, count);
  if (seam > 0) shape.append(...spans.slice(0, seam), el("span", { class: "seam", role: "presentation" }, seam < count ? "answer" : "cut before the answer"));
  shape.append(...spans.slice(seam));
  if (count < s.whole) shape.append(el("span", { class: "seam", role: "presentation" }, `${(s.whole - count).toLocaleString("en")} tokens more, which this report leaves out`));
  const links = el("ul", { class: "least", "aria-label": "least certain tokens" });
  const relink = () => links.replaceChildren(...(colouring === "surprise" ? least : leastByEntropy).map((t) => el("li", {}, el("button", { type: "button",
    onclick: () => { select(t, true); shape.focus({ preventScroll: true }); } }, ...safely(visible(s.texts[s.tokens[t]]).trim() || "␣"), ` ${nats(s[colouring][t])}`))));
  const tools = el("div", { class: "tools" }, el("fieldset", {}, el("legend", {}, "Colour by"), ...["surprise", "entropy"].map((name) =>
    el("label", {}, el("input", { type: "radio", name: prefix + "by", value: name, checked: name === colouring, onchange: () => { colouring = name; paint(); relink(); } }), " " + name))),
    el("span", { class: "scale" }, "sure", ...[0, 1, 2, 3, 4, 5].map((i) => { const box = el("i"); box.style.background = `var(--s${i})`; return box; }), "3.5 nats and more"),
    el("span", { class: "scale" }, (() => { const box = el("i"); box.style.boxShadow = "0 0 0 1.6px var(--ring)"; return box; })(), " set by a grammar or a budget, or a rare draw"));
  paint();
  relink();
  // once it stands in the page and has a height
  requestAnimationFrame(() => select(least[0] ?? 0, true));
  const nodes = [tools, inspect, shape, el("p", { class: "note" }, "Least certain tokens by the chosen colour:"), links];
  if (!s.spelt) nodes.unshift(el("p", { class: "note" }, "The teacher's tokenizer is not at hand, or is another one: tokens are shown by their ids."));
  if (row.least > 0) nodes.push(el("p", { class: "note" }, `To keep this row small, ids below ${percent(row.least, 2)} stand in the tail here; the dataset has them all.`));
  return nodes;
}
// the place in a JSON text (`attendees.0.name`) of each of its characters
function placesOf(text) {
  const places = [], stack = [];
  let begun = -1, escaped = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i], top = stack.at(-1);
    places.push(stack.map((one) => one.at).filter((at) => at !== null).join("."));
    if (begun >= 0) {
      if (escaped) escaped = false;
      else if (c === "\\") escaped = true;
      else if (c === '"') { if (top && top.key) top.at = text.slice(begun + 1, i); begun = -1; }
    } else if (c === '"') begun = i;
    else if (c === "{") stack.push({ at: null, key: true });
    else if (c === "[") stack.push({ at: 0, key: false });
    else if (c === "}" || c === "]") stack.pop();
    else if (c === ":" && top) top.key = false;
    else if (c === "," && top) { if (typeof top.at === "number") top.at++; else { top.at = null; top.key = true; } }
  }
  return places;
}
function placesOfTokens(s) {
  const texts = s.tokens.map((place, t) => (t < s.answer_start ? "" : s.texts[place]));
  const whole = texts.join("");
  // an answer may be free text: quotes and braces mean nothing there
  const places = s.spelt && /^\s*[{[]/.test(whole) ? placesOf(whole) : [];
  let end = 0;
  return texts.map((text) => { end += text.length; return text.trim() ? places[end - 1] || "" : ""; });
}
const visible = (text) => text.replaceAll("\n", "↵\n").replaceAll("\t", "→\t");
function tell(row, s, t, forced, place) {
  const name = (place) => (s.spelt ? visible(s.texts[place]).replace(/\n$/, "") || "␀" : `⟨${s.texts[place]}⟩`);
  const facts = el("dl");
  const add = (key, value) => facts.append(el("dt", {}, key), el("dd", {}, value));
  add("token", `${t + 1} of ${s.whole.toLocaleString("en")}, ${t < s.answer_start ? "reasoning" : "answer"}`);
  if (place) facts.append(el("dt", {}, "place"), el("dd", {}, ...safely(place)));
  add("id", String(s.ids[t]));
  const found = s.ranks[t] && s.candidates[t].length >= 2 * s.ranks[t] ? s.candidates[t][2 * s.ranks[t] - 1] / 1e4 : null;
  add("probability", s.surprise[t] >= 9999 ? "0" : percent(found ?? Math.exp(-s.surprise[t] / 100), 2));
  add("surprise", nats(s.surprise[t]) + " nats");
  add("entropy", nats(s.entropy[t]) + " nats");
  add("rank", !s.candidates[t].length ? "not kept" : s.ranks[t] ? String(s.ranks[t]) : `not among the ${row.top_k}`);
  const left = el("div", {}, el("h4", {}, ...safely(name(s.tokens[t]))), facts);
  if (forced.has(t)) left.append(el("p", { class: "note" }, t < s.answer_start && t >= s.answer_start - 3
    ? "Ends the reasoning; the teacher alone would hardly have done so here: perhaps its budget was spent."
    : "The teacher alone would hardly have written this: a grammar set it, or it was a rare draw."));
  const bars = el("div", { class: "bars", tabindex: 0, role: "group", "aria-label": "likeliest tokens and all others" });
  const bar = (label, tenThousandths, kind) => {
    const fill = el("i");
    fill.style.width = Math.min(100, tenThousandths / 100) + "%";
    bars.append(el("code", { class: kind }, ...safely(label)), el("div", { class: "track " + kind }, fill), el("span", { class: "p " + kind }, percent(tenThousandths / 1e4, 2)));
  };
  const candidates = s.candidates[t];
  let tiny = 0;
  for (let i = 0; i < candidates.length; i += 2) {
    const sampled = candidates[i] === s.tokens[t] && i / 2 + 1 === s.ranks[t];
    if (candidates[i + 1] || sampled || !i) bar(name(candidates[i]), candidates[i + 1], sampled ? "sampled" : ""); else tiny++;
  }
  if (tiny) bars.append(el("span", { class: "tiny" }, `${tiny} more kept ids, each below 0.01 %`));
  if (candidates.length) bar("all others", s.tail[t], "tail");
  return [left, candidates.length ? bars : el("p", { class: "note" }, "Its distribution is not kept: this dataset keeps some positions only.")];
}

// ---- what is wider than the screen can be scrolled with the keyboard too
function makeReachable() {
  for (const box of document.querySelectorAll(".scroll, .chart")) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    const title = box.closest(".card")?.querySelector("h3")?.textContent || "table";
    for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", title]]) {
      if (wide) box.setAttribute(name, value); else box.removeAttribute(name);
    }
  }
}
addEventListener("resize", makeReachable);
document.addEventListener("toggle", makeReachable, true);

// ---- begin
fillFilters();
for (const name of [...filters, "order"]) if ($("f-" + name)) $("f-" + name).addEventListener("change", () => applyFilter(true));
$("f-text").addEventListener("input", () => applyFilter(true));
applyFilter(firsts.length > 0);
Promise.all([...document.querySelectorAll("[data-chart]")].map(draw)).then(() => {
  makeReachable();
  document.documentElement.dataset.ready = "yes";
});
})();
