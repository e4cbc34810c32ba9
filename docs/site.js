// Wide tables scroll, and are scrolled by keyboard once they can be focused.
document$.subscribe(() => {
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap")) table.tabIndex = 0;
});
