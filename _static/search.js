// The search: how its words are split, what it quotes, and where a result opens.

// "1×1" is one word, also if typed as "1x1"; Sphinx takes this function if there is one.
var splitQuery = (query) => query
  .replace(/(\d)x(?=\d)/gi, "$1×")
  .split(/[^\p{L}\p{N}_×]+/u)
  .filter((word) => word);

// A query without its spaces and signs, as `_ext/book_pages.py` adds the glossary's terms
// to the index: "Q, K, V", "qkv" and "QKV" are one.
const closeUp = (query) => splitQuery(query.toLowerCase()).join("").replace(/_/g, "");

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");

// What a query may look like in a text: the whole of it, with spaces and signs between any
// two letters; in quotes, as it stands.
function whole(query) {
  const exact = query.match(/^"(.*)"$/)?.[1];
  const apart = "(?:[\\s,./_-]|and\\b|or\\b){0,6}";
  return exact ? escaped(exact).replace(/\s+/g, "\\s+") : [...closeUp(query)].map(escaped).join(apart);
}

// Or one of its words, as it begins; few words say nothing by themselves.
function parts(query) {
  if (query.startsWith('"')) return [];
  const says = (word) => word.length > 1 && !stopwords.includes(word.toLowerCase());
  return splitQuery(query).filter(says).map(escaped);
}

const like = (...patterns) =>
  new RegExp(`(?<![\\p{L}\\p{N}])(?:${patterns.join("|")})`, "giu");

// On the page that lists results: quote each page from `searchtexts.js`, since a file may
// not open another, and lead to the hit.
function quoteFromTexts(results) {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  const query = new URLSearchParams(location.search).get("q") ?? "";
  const byWords = Search.performTermsSearch;
  Search.performTermsSearch = (words, without) => [
    ...byWords(words, without),
    ...byWords(new Set([new Stemmer().stemWord(closeUp(query))]), without),
  ];
  const quote = (item, { pages, terms }) => {
    const link = item.querySelector("a");
    const page = link.getAttribute("href").split(/[#?]/)[0].replace(/\.html$/, "");
    const text = pages[page] ?? "";
    const term = terms[closeUp(query)];
    const hit = term && text.match(new RegExp(term, "iu"));
    const found = hit ? `"${hit[0]}"` : query;
    const [address, anchor] = link.href.split("#");
    link.href = `${address}?found=${encodeURIComponent(found)}${anchor ? `#${anchor}` : ""}`;
    const places = [whole(found), ...parts(found)].map((one) => text.search(like(one)));
    const at = places.find((place) => place >= 0);
    if (at === undefined) return;
    const shown = document.createElement("p");
    shown.className = "context";
    const begin = at < 100 ? 0 : text.indexOf(" ", at - 100) + 1;
    shown.textContent = `${begin ? "…" : ""}${text.slice(begin, begin + 240).trim()}…`;
    item.append(shown);
    mark(shown, found);
  };
  window.addEventListener("texts", ({ detail }) => {
    const all = () => results.querySelectorAll("ul.search > li:not([data-quoted])")
      .forEach((item) => { item.dataset.quoted = ""; quote(item, detail); });
    new MutationObserver(all).observe(results, { childList: true, subtree: true });
    all();
  });
  const script = document.createElement("script");
  script.src = "searchtexts.js";
  document.head.append(script);
}

// Mark what a query looks like within an element, without touching its nodes; the ranges.
const marked = [];
function mark(element, query) {
  const pattern = like(whole(query), ...parts(query));
  const nodes = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
    if (node.parentElement.closest("script, style, mjx-container, .math, svg")) continue;
    for (const found of node.data.matchAll(pattern)) {
      const range = new Range();
      range.setStart(node, found.index);
      range.setEnd(node, found.index + found[0].length);
      marked.push(range);
    }
  }
  if (window.CSS?.highlights) CSS.highlights.set("found", new Highlight(...marked));
  return marked;
}

// On a page that a result has opened: go to the first hit that one can see.
function openAtHit(query) {
  const article = document.querySelector("article");
  const ranges = mark(article, query);
  if (!ranges.length) return;
  const fold = (range) =>
    range.startContainer.parentElement.closest("details:not([open]), .toggle-hidden");
  const first = ranges.find((range) => !fold(range)) ?? ranges[0];
  fold(first)?.querySelector("summary, .toggle-button").click();
  const holder = first.startContainer.parentElement;
  if (!location.hash) holder.scrollIntoView({ block: "center" });
  const done = document.createElement("button");
  done.type = "button";
  done.className = "fs-found";
  done.textContent = `${query} is marked: remove (Esc)`;
  const clear = () => {
    window.CSS?.highlights?.delete("found");
    done.remove();
    history.replaceState(null, "", location.pathname + location.hash);
  };
  done.addEventListener("click", clear);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
  article.prepend(done);
}

document.addEventListener("DOMContentLoaded", () => {
  const results = document.getElementById("search-results");
  if (results) quoteFromTexts(results);
});
// Late, when what folds is folded.
window.addEventListener("load", () => {
  const found = new URLSearchParams(location.search).get("found");
  if (found) openAtHit(found);
});
