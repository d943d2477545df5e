// From a file, the search cannot open the pages it found to quote from them; it lists them.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
