// What results are drawn with: elements, a table, bars, a plot. Texts are set as text, never as HTML.

function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  // JupyterLab looks at what has the focus, and would take its keys as commands.
  if (made.tabIndex >= 0) made.setAttribute("data-lm-suppress-shortcuts", "true");
  return made;
}

function svg(tag, attributes, ...content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

// Three digits, as in 1,234 and 12.3 and 0.123.
function number(value) {
  const places = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return value.toLocaleString("en", { maximumFractionDigits: Math.min(places, 3) });
}
const count = (n) => n.toLocaleString("en");
const ratio = (value) => value.toFixed(2);
const range = ([low, , high], show = number) => `${show(low)} to ${show(high)}`;
const spread = (three, show = number) => `${show(three[1])} (${range(three, show)})`;

function table(caption, heads, rows) {
  const head = heads.map((text) => element("th", { scope: "col" }, text));
  const body = rows.map(([name, ...cells]) => element("tr", {},
    element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))));
  const made = element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  // It may be wider than a phone; then it is scrolled, by keyboard too.
  const attributes = { class: "fs-lab-wide", tabindex: "0", role: "region", "aria-label": caption };
  return element("div", attributes, made);
}

// Medians as bars, with their quartiles. The table says the same.
function bars(rows) {
  const most = Math.max(...rows.map(([, [, , high]]) => high));
  const share = (us) => `${(100 * us) / most}%`;
  const bar = ([name, [low, middle, high]]) => element("div", {}, element("span", {}, name),
    element("span", { class: "fs-lab-track" },
      element("i", { style: `width:${share(middle)}` }),
      element("b", { style: `left:${share(low)};width:${share(high - low)}` })));
  return element("div", { class: "fs-lab-bars", "aria-hidden": "true" }, ...rows.map(bar));
}

const BOX = { left: 52, right: 348, top: 34, bottom: 226 }, log = Math.log10;

// Times over n, both axes logarithmic: medians with quartiles, and the lines that were fitted.
function plot(ns, series, label) {
  const times = series.flatMap(({ spreads }) => spreads.flat());
  const low = Math.floor(log(Math.min(...times))), high = Math.ceil(log(Math.max(...times)));
  const begin = log(ns[0]) - 0.08, end = log(ns[ns.length - 1]) + 0.08;
  const axes = {
    low, high,
    x: (n) => BOX.left + ((BOX.right - BOX.left) * (log(n) - begin)) / (end - begin),
    y: (us) => BOX.bottom - ((BOX.bottom - BOX.top) * (log(us) - low)) / (high - low),
  };
  const drawn = series.flatMap((one, i) => curve(ns, one, i, axes));
  const attributes = { viewBox: "0 0 360 266", role: "img", "aria-label": label };
  return svg("svg", attributes, ...scales(ns, axes), ...drawn);
}

const words = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor }, text);

function scales(ns, { low, high, x, y }) {
  const powers = Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
  const { left, right, bottom } = BOX;
  return [
    ...powers.map((us) => svg("path", { class: "fs-lab-grid", d: `M${left} ${y(us)}H${right}` })),
    ...powers.map((us) => words(left - 6, y(us) + 4, count(us), "end")),
    ...ns.filter((n) => Number.isInteger(log(n))).map((n) => words(x(n), bottom + 17, count(n), "middle")),
    words((left + right) / 2, bottom + 35, "launches, n", "middle"),
    words(left - 6, 14, "µs", "end"),
  ];
}

// One way: its line, a mark for each n with its quartiles, and its name above.
function curve(ns, { way, a, b, spreads }, i, { low, high, x, y }) {
  const own = `fs-lab-${i}`, from = log(ns[0]), to = log(ns[ns.length - 1]);
  const mark = (cx, cy) => (i
    ? svg("rect", { class: own, x: cx - 3.5, y: cy - 3.5, width: 7, height: 7 })
    : svg("circle", { class: own, cx, cy, r: 4 }));
  const path = (d) => svg("path", { class: `fs-lab-line ${own}`, d });
  const points = Array.from({ length: 40 }, (_, j) => 10 ** (from + (j / 39) * (to - from)))
    .map((n) => [n, a[1] + b[1] * n]).filter(([, us]) => us >= 10 ** low && us <= 10 ** high)
    .map(([n, us]) => `${x(n).toFixed(1)} ${y(us).toFixed(1)}`);
  const place = BOX.left + 12 + 110 * i;
  return [
    path(`M${points.join("L")}`),
    ...spreads.flatMap(([first, middle, last], j) =>
      [path(`M${x(ns[j])} ${y(first)}V${y(last)}`), mark(x(ns[j]), y(middle))]),
    mark(place, 10), words(place + 10, 14, way, "start"),
  ];
}
