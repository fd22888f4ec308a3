"use strict";
// Draws a report from the JSON in this page. Text from data is only ever set as text, never as HTML.
// Content: {title, subtitle, sections: [{type, title, note, ...}]}; each type is drawn by a function of that name below.

const content = JSON.parse(document.getElementById("data").textContent);

/** Text in which marks that turn its direction around are seen: `\u202e` may make a name look like another. */
const plain = (text) =>
  String(text).replace(/[\u202a-\u202e\u2066-\u2069]/g, (mark) => `\\u${mark.charCodeAt(0).toString(16)}`);

/** Makes an element. Attributes that start with "on" are listeners; children are nodes or text. */
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g", "circle", "rect", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value === true ? "" : plain(value));
  }
  for (const child of children)
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : plain(child));
  return node;
}

const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}%`);
const number = (value) =>
  value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: 4 });
const seconds = (value) => `${number(value)} s`;
/** A time within a video: 12.5 s, or 1:02:03. */
function clock(value) {
  if (value < 60) return seconds(value);
  const [hours, minutes, rest] = [value / 3600, (value / 60) % 60, value % 60].map(Math.floor);
  return [hours || null, minutes, rest]
    .filter((part) => part !== null)
    .map((part, at) => String(part).padStart(at ? 2 : 1, "0"))
    .join(":");
}

// ---- A clip as a film ------------------------------------------------------------------------------------------------------

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

/** The frames of a clip, shown one after the other while the pointer or the focus is on them, or once they are clicked. */
function film(strip, name) {
  if (!strip) return el("div", { class: "film none" }, "no picture");
  const frames = el("span", { class: "frames", style: `--n:${strip.frames};background-image:url(${strip.image})` });
  const heat = strip.heat
    ? el("span", { class: "frames heat", style: `--n:${strip.frames};background-image:url(${strip.heat})` })
    : null;
  return el(
    "button",
    {
      class: `film${still ? " still" : ""}`,
      type: "button",
      "aria-pressed": "false",
      "aria-label": `Play the frames of ${name}`,
      onclick: (event) => {
        const on = event.currentTarget.classList.toggle("playing");
        event.currentTarget.setAttribute("aria-pressed", String(on));
      },
    },
    frames,
    heat,
  );
}

/** The classes of a clip with bars. */
function bars(top, expected) {
  const list = el("ol", { class: "bars" });
  for (const [label, probability] of top) {
    const right = expected !== undefined && expected !== null && label === expected;
    list.append(
      el(
        "li",
        { class: right ? "right" : "" },
        el("span", { class: "bar", style: `width:${Math.max(0.5, 100 * probability)}%` }),
        el("span", { class: "label" }, label, right ? " ✓" : ""),
        el("span", { class: "value" }, percent(probability)),
      ),
    );
  }
  return list;
}

/** The end of a path or URL, which tells videos apart. */
const ending = (name) => name.split("/").slice(-2).join("/");

function card(clip) {
  const parts = [film(clip.strip, ending(clip.video)), el("p", { class: "name", title: clip.video }, ending(clip.video))];
  if (clip.note) parts.push(el("p", { class: "small" }, clip.note));
  if (clip.expected !== undefined && clip.expected !== null)
    parts.push(el("p", { class: "small" }, "labeled ", el("b", {}, clip.expected)));
  if (clip.status !== "ok") parts.push(el("p", { class: "bad" }, clip.status));
  if (clip.top) parts.push(bars(clip.top, clip.expected));
  return el("li", { class: "card" }, ...parts);
}

// ---- Sections --------------------------------------------------------------------------------------------------------------

function facts(section) {
  const list = el("dl", { class: "facts" });
  for (const [name, value] of section.rows) list.append(el("dt", {}, name), el("dd", {}, String(value)));
  return [list];
}

function code(section) {
  return [el("details", {}, el("summary", {}, "Show"), el("pre", { tabindex: "0" }, section.text))];
}

/** A table that is sorted by a click on the head of a column. Columns: {name, kind: text, number, percent or seconds}. */
function table(section) {
  const shown = { text: String, number, percent, seconds };
  const body = el("tbody");
  const rows = [...section.rows];
  const fill = () =>
    body.replaceChildren(
      ...rows.map((row) =>
        el(
          "tr",
          {},
          ...row.map((value, at) => {
            const kind = section.columns[at].kind;
            return el("td", { class: kind }, value === null ? "–" : shown[kind](value));
          }),
        ),
      ),
    );
  const heads = section.columns.map((column, at) => {
    const head = el("th", { scope: "col", "aria-sort": "none" });
    const sort = () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const sign = rising ? 1 : -1;
      const compare = column.kind === "text" ? (a, b) => (a[at] ?? "").localeCompare(b[at] ?? "") : (a, b) => a[at] - b[at];
      rows.sort((a, b) => sign * compare(a, b));
      fill();
    };
    head.append(el("button", { type: "button", onclick: sort, class: column.kind }, column.name));
    return head;
  });
  fill();
  const whole = el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body);
  if (!rows.length) return [];
  return [el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${section.title}` }, whole)];
}

/** Line charts. Charts: {title, unit, series: [{name, points: [[x, y], ...]}]}; x is in epochs. */
function curves(section) {
  return [el("div", { class: "charts" }, ...section.charts.map((chart) => lineChart(chart, section.x)))];
}

function lineChart(chart, xName) {
  const [width, height, left, right, top, bottom] = [440, 240, 52, 12, 12, 34];
  const points = chart.series.flatMap((series) => series.points);
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  let [x0, x1] = [Math.min(0, ...xs), Math.max(...xs)];
  let [y0, y1] = chart.from_zero ? [0, Math.max(...ys)] : [Math.min(...ys), Math.max(...ys)];
  if (x0 === x1) x1 = x0 + 1;
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chartInWords(chart) });
  for (const value of ticks(y0, y1)) {
    svg.append(
      el("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
      el("text", { x: left - 6, y: y(value) + 4, class: "tick end" }, number(value)),
    );
  }
  for (const value of ticks(x0, x1))
    svg.append(el("text", { x: x(value), y: height - bottom + 16, class: "tick middle" }, number(value)));
  svg.append(el("text", { x: (left + width - right) / 2, y: height - 4, class: "tick middle" }, xName));
  chart.series.forEach((series, at) => {
    const path = series.points.map(([a, b], n) => `${n ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    svg.append(el("path", { d: path, class: `series s${at}` }));
    const dots = series.points.length <= 60 ? series.points : [];
    for (const [a, b] of dots)
      svg.append(
        el(
          "circle",
          { cx: x(a), cy: y(b), r: 3, class: `dot s${at}` },
          el("title", {}, `${series.name}: ${number(b)} at ${xName} ${number(a)}`),
        ),
      );
  });
  const legend = el("ul", { class: "legend" });
  chart.series.forEach((series, at) =>
    legend.append(el("li", {}, el("span", { class: `key s${at}` }), series.name)),
  );
  return el("figure", {}, el("figcaption", {}, chart.title + (chart.unit ? `, ${chart.unit}` : "")), svg, legend);
}

function chartInWords(chart) {
  const parts = chart.series
    .filter((series) => series.points.length)
    .map((series) => `${series.name} from ${number(series.points[0][1])} to ${number(series.points.at(-1)[1])}`);
  return `${chart.title}: ${parts.join("; ")}`;
}

function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step)
    found.push(Number(value.toPrecision(10)));
  return found;
}

/** Classes of a confusion matrix whose rows are named: more names cannot be read. */
const MOST_NAMED = 40;

/** A matrix of counts: rows are true classes, columns are predicted ones. Pointer and arrow keys tell each cell. */
function confusion(section) {
  const { labels, matrix } = section;
  const count = labels.length;
  const cell = Math.max(3, Math.min(40, Math.floor(640 / count)));
  const canvas = el("canvas", {
    width: count * cell,
    height: count * cell,
    tabindex: "0",
    role: "application",
    "aria-label": "Confusion matrix. Arrow keys tell each cell. The table of the classes has what each is most often taken for.",
  });
  const told = el("p", { class: "told", "aria-live": "polite" }, "Point at a cell, or move by arrow keys.");
  const sums = matrix.map((row) => row.reduce((a, b) => a + b, 0));
  let [row, column, chosen] = [0, 0, false];
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const [good, bad, paper] = ["--good", "--bad", "--card"].map((name) => style.getPropertyValue(name).trim());
    const brush = canvas.getContext("2d");
    brush.globalAlpha = 1;
    brush.fillStyle = paper;
    brush.fillRect(0, 0, canvas.width, canvas.height);
    matrix.forEach((values, y) =>
      values.forEach((value, x) => {
        if (!value) return;
        brush.globalAlpha = 0.15 + 0.85 * (value / sums[y]);
        brush.fillStyle = x === y ? good : bad;
        brush.fillRect(x * cell, y * cell, cell - (cell > 5), cell - (cell > 5));
      }),
    );
    brush.globalAlpha = 1;
    brush.strokeStyle = style.getPropertyValue("--accent").trim();
    brush.lineWidth = 2;
    if (chosen) brush.strokeRect(column * cell, row * cell, cell, cell);
  };
  const tell = () => {
    chosen = true;
    draw();
    const share = sums[row] ? matrix[row][column] / sums[row] : 0;
    told.textContent = `${matrix[row][column]} of ${sums[row]} clips (${percent(share)}) of “${plain(labels[row])}” are predicted as “${plain(labels[column])}”.`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    column = Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count));
    row = Math.min(count - 1, Math.floor(((event.clientY - box.top) / box.height) * count));
    if (row >= 0 && column >= 0) tell();
  });
  canvas.addEventListener("focus", tell);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = Math.max(0, Math.min(count - 1, row + step[0]));
    column = Math.max(0, Math.min(count - 1, column + step[1]));
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  requestAnimationFrame(draw);
  const rows = labels.map((label) => el("li", { title: plain(label) }, plain(label)));
  const named = count <= MOST_NAMED ? [el("ol", { class: count > 12 ? "rows many" : "rows", "aria-hidden": "true" }, ...rows)] : [];
  const order = "Rows are labels, columns are predictions, both in the same order; green is right, red is wrong.";
  return [el("p", { class: "small" }, order), el("div", { class: "matrix" }, ...named, canvas), told];
}

/** Clips that are searched, filtered and sorted. */
function gallery(section) {
  const clips = section.clips;
  const statuses = [...new Set(clips.map((clip) => clip.kind))];
  const labels = [...new Set(clips.flatMap((clip) => (clip.top ? [clip.top[0][0]] : [])))].sort();
  const id = section.id;
  const search = el("input", { type: "search", id: `${id}-search`, placeholder: "name or label" });
  const label = el(
    "select",
    { id: `${id}-label` },
    el("option", { value: "" }, "all"),
    ...labels.map((name, at) => el("option", { value: String(at) }, name)),
  );
  const kind = el(
    "select",
    { id: `${id}-kind` },
    el("option", { value: "" }, "all"),
    ...statuses.map((name, at) => el("option", { value: String(at) }, name)),
  );
  const least = el("input", { type: "range", id: `${id}-least`, min: 0, max: 100, value: 0, step: 1 });
  const leastText = el("output", { for: `${id}-least` }, "0%");
  const order = el(
    "select",
    { id: `${id}-order` },
    ...[
      ["as-is", "as chosen"],
      ["name", "name"],
      ["most", "most probable first"],
      ["least", "least probable first"],
    ].map(([value, text]) => el("option", { value }, text)),
  );
  const told = el("p", { class: "told", "aria-live": "polite" });
  const list = el("ul", { class: "cards" });
  const more = el("button", { type: "button", class: "more" }, "Show more");
  let limit;
  const probability = (clip) => (clip.top ? clip.top[0][1] : 0);
  const orders = {
    "as-is": null,
    name: (a, b) => a.video.localeCompare(b.video),
    most: (a, b) => probability(b) - probability(a),
    least: (a, b) => probability(a) - probability(b),
  };
  let found = clips;
  const show = (first) => {
    list.append(...found.slice(first, limit).map(card));
    more.hidden = found.length <= limit;
  };
  const update = () => {
    limit = 48;
    const wanted = search.value.trim().toLowerCase();
    const chosen = label.value === "" ? null : labels[Number(label.value)];
    leastText.textContent = `${least.value}%`;
    found = clips.filter(
      (clip) =>
        (!wanted ||
          clip.video.toLowerCase().includes(wanted) ||
          (clip.top || []).some(([name]) => name.toLowerCase().includes(wanted)) ||
          (clip.expected || "").toLowerCase().includes(wanted)) &&
        (chosen === null || (clip.top && clip.top[0][0] === chosen)) &&
        (!kind.value || clip.kind === statuses[Number(kind.value)]) &&
        (probability(clip) >= least.value / 100 || (!clip.top && least.value === "0")),
    );
    if (orders[order.value]) found = [...found].sort(orders[order.value]);
    told.textContent = `${found.length} of ${clips.length} ${section.what}`;
    list.replaceChildren();
    show(0);
  };
  more.addEventListener("click", () => {
    const first = limit;
    limit += 96;
    show(first);
    // The button moves away from the keyboard's place, or vanishes.
    list.children[first].tabIndex = -1;
    list.children[first].focus();
  });
  for (const control of [search, label, kind, least, order])
    for (const event of ["input", "change"]) control.addEventListener(event, update);
  update();
  const field = (name, control, ...rest) => el("div", {}, el("label", { for: control.id }, name), control, ...rest);
  const form = el(
    "form",
    { class: "controls", role: "search", "aria-label": section.title, onsubmit: (event) => event.preventDefault() },
    field("Search", search),
    field("Predicted", label),
    field("Kind", kind),
    field("At least", least, leastText),
    field("Order", order),
  );
  return [form, told, list, more];
}

/**
 * Windows of long videos, as stretches of a line below frames of the video. Pointer and arrow keys tell each of them.
 * Windows: [start, end that is drawn, end, index of the name, probability].
 */
function timeline(section) {
  // A label has the same color in all videos.
  const labels = [...new Set(section.videos.flatMap(({ names }) => names.filter(({ ok }) => ok).map(({ name }) => name)))];
  const hues = new Map(labels.map((label, at) => [label, (205 + 137.5 * at) % 360]));
  return section.videos.map((video) => {
    const { names, windows } = video;
    const color = (at) => (names[at].ok ? `background:hsl(${hues.get(names[at].name)} 60% 50%)` : null);
    const total = Math.max(...windows.map((window) => window[2]));
    const told = el("p", { class: "told" }, "Point at the line, or move along it by arrow keys.");
    const cursor = el("span", { class: "cursor" });
    cursor.hidden = true;
    const line = el("div", {
      class: "line",
      role: "slider",
      tabindex: "0",
      "aria-label": `Windows of ${video.video}`,
      "aria-valuemin": 1,
      "aria-valuemax": windows.length,
      "aria-valuenow": 1,
    });
    // An error of the rest of a video, or of all of it, has no length.
    const place = ([start, drawn]) =>
      total ? `left:min(${(100 * start) / total}%, 100% - 8px);width:${(100 * Math.max(0, drawn - start)) / total}%;` : "width:100%;";
    for (const window of windows)
      line.append(el("span", { class: `stretch ${names[window[3]].ok ? "" : "wrong"}`, style: place(window) + (color(window[3]) ?? "") }));
    line.append(cursor);
    const inWords = ([start, , end, name, probability]) =>
      (end > start ? `${clock(start)} to ${clock(end)}: ` : "") +
      plain(names[name].name) +
      (names[name].ok ? `, ${percent(probability)}` : "");
    let at = 0;
    const tell = (next) => {
      at = Math.max(0, Math.min(windows.length - 1, next));
      told.textContent = inWords(windows[at]);
      line.setAttribute("aria-valuenow", at + 1);
      line.setAttribute("aria-valuetext", told.textContent);
      cursor.style.cssText = place(windows[at]);
      cursor.hidden = false;
    };
    line.setAttribute("aria-valuetext", inWords(windows[0]));
    line.addEventListener("focus", () => tell(at));
    const point = (event) => {
      const box = line.getBoundingClientRect();
      const time = ((event.clientX - box.left) / box.width) * total;
      tell(windows.findLastIndex(([start]) => start <= Math.max(0, time)));
    };
    line.addEventListener("pointermove", point);
    line.addEventListener("pointerdown", point);
    line.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: -10, PageDown: 10, Home: -at, End: windows.length };
      if (!(event.key in steps)) return;
      event.preventDefault();
      tell(at + steps[event.key]);
    });
    const legend = el("ul", { class: "legend" });
    names.forEach(({ name, ok }, n) =>
      legend.append(el("li", {}, el("span", { class: ok ? "key" : "key wrong", style: color(n) }), name)),
    );
    const frames = el("div", { class: "moments" });
    for (const moment of video.moments)
      frames.append(
        el("figure", {}, film(moment.strip, `${video.video} at ${clock(moment.start)}`), el("figcaption", {}, clock(moment.start))),
      );
    return el("div", { class: "video" }, el("h3", {}, video.video), frames, line, told, legend);
  });
}

// ---- The page --------------------------------------------------------------------------------------------------------------

const kinds = { facts, code, table, curves, confusion, gallery, timeline, note: () => [] };

document.title = plain(content.title);
document
  .getElementById("header")
  .append(el("h1", {}, content.title), content.subtitle ? el("p", {}, content.subtitle) : "");
const contents = el("ul");
content.sections.forEach((section, at) => {
  section.id = `section-${at}`;
  const parts = kinds[section.type](section);
  const whole = el("section", { id: section.id, "aria-labelledby": `${section.id}-title` });
  whole.append(el("h2", { id: `${section.id}-title` }, section.title));
  if (section.note) whole.append(el("p", { class: "note" }, section.note));
  whole.append(...parts);
  document.getElementById("main").append(whole);
  contents.append(el("li", {}, el("a", { href: `#${section.id}` }, section.title)));
});
document.getElementById("contents").append(contents);
document.getElementById("footer").append(el("p", {}, `Made by ssv2rt ${content.version}. This file loads nothing from elsewhere.`));
