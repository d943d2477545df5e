// <fs-explorer>: one recorded case at a time, chosen from lists. The texts were written by the
// library and are only shown here. Without this script, the first case stands there.

const BARS = ["recorded: median, with its quartiles", "the model"];

function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

class Explorer extends HTMLElement {
  connectedCallback() {
    const script = this.querySelector("script");
    if (!script) return;
    ({ columns: this.columns, cases: this.cases } = JSON.parse(script.textContent));
    this.chosen = { ...this.cases[0][0] };
    this.lists = Object.keys(this.chosen).map((name) => this.list(name));
    this.says = element("p", { role: "status", class: "fs-says" });
    this.view = element("div");
    this.setAttribute("role", "group");
    const named = this.lists.map((list) =>
      element("div", {}, element("label", { for: list.id }, list.name), list));
    this.replaceChildren(element("div", { class: "fs-choices" }, ...named), this.says, this.view);
    this.show();
  }

  list(name) {
    const list = element("select", { name, id: `fs-${name}` });
    list.addEventListener("change", () => {
      this.chosen[name] = JSON.parse(list.value);
      this.show();
    });
    return list;
  }

  // Each list offers what has been recorded with the choices of the lists before it. A choice
  // that is gone gives way to the first there is.
  show() {
    let left = this.cases;
    for (const list of this.lists) {
      const offered = [...new Set(left.map(([choices]) => choices[list.name]))];
      if (!offered.includes(this.chosen[list.name])) this.chosen[list.name] = offered[0];
      list.replaceChildren(...offered.map((value) =>
        element("option", { value: JSON.stringify(value) }, String(value))));
      list.value = JSON.stringify(this.chosen[list.name]);
      left = left.filter(([choices]) => choices[list.name] === this.chosen[list.name]);
    }
    const [, summary, rows] = left[0];
    this.says.textContent = summary;
    this.view.replaceChildren(this.bars(rows), this.table(rows));
  }

  // Pictures for the eye; the table says the same.
  bars(rows) {
    const drawn = rows.filter(([, bar]) => bar.length);
    const most = Math.max(...drawn.flatMap(([, bar]) => bar));
    const share = (us) => `${(100 * us) / most}%`;
    const lines = drawn.map(([[name], [low, middle, high, said]]) => {
      const track = element("div", { class: "fs-track" });
      const piece = (kind, left, width) =>
        track.append(element("i", { class: kind, style: `left:${left};width:${width}` }));
      piece("fs-recorded", "0", share(middle));
      piece("fs-quartiles", share(low), share(high - low));
      piece("fs-said", "0", share(said));
      return element("div", { class: "fs-bar" }, element("span", {}, name), track);
    });
    const key = element("p", { class: "fs-key" });
    key.append(element("i", { class: "fs-recorded" }), BARS[0], element("i", { class: "fs-said" }), BARS[1]);
    return element("div", { "aria-hidden": "true" }, ...lines, key);
  }

  table(rows) {
    const head = this.columns.map((name) => element("th", { scope: "col" }, name));
    const body = rows.map(([[name, ...cells]]) =>
      element("tr", {}, element("th", { scope: "row" }, name),
        ...cells.map((cell) => element("td", {}, cell))));
    const table = element("table", {},
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
    // It may be wider than a phone; then it is scrolled, by keyboard too.
    return element("div", { class: "fs-wide", tabindex: "0", role: "region", "aria-label": "Numbers of this case" }, table);
  }
}

document.addEventListener("DOMContentLoaded", () => customElements.define("fs-explorer", Explorer));
