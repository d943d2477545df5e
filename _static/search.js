// From a file, the search cannot open the pages it found to quote from them; it lists them.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// "1×1" is one word, also if typed as "1x1"; Sphinx takes this function if there is one.
var splitQuery = (query) => query
  .replace(/(\d)x(?=\d)/gi, "$1×")
  .split(/[^\p{L}\p{N}_×]+/u)
  .filter((word) => word);

// What it quotes comes from the text, not from the page's table of contents before it.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const whole = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelector("#jb-print-docs-body")?.remove();
    return whole(page.documentElement.outerHTML, anchor);
  };
});
