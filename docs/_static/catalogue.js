"use strict";
// Filters and sorts the table of data sets. Without this script the page shows the same table, whole and in its own order.
(() => {
  const box = document.querySelector(".catalogue");
  const body = box.querySelector("tbody");
  const rows = [...body.rows];

  const bar = document.createElement("form");
  bar.className = "catalogue-bar";
  bar.addEventListener("submit", (event) => event.preventDefault());
  const field = (label, control) => {
    const wrapper = document.createElement("label");
    wrapper.append(label, control);
    bar.append(wrapper);
    control.addEventListener("input", show);
    return control;
  };
  const choice = (label, key, names = {}) => {
    const select = document.createElement("select");
    const values = new Set(rows.flatMap((row) => row.dataset[key].split("|")).filter(Boolean));
    select.append(new Option("all", ""));
    [...values].sort().forEach((value) => select.append(new Option(names[value] ?? value, value)));
    select.dataset.key = key;
    return field(label, select);
  };

  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "any words";
  const count = document.createElement("output");
  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const kept =
        words.every((word) => text.includes(word)) &&
        selects.every((select) => !select.value || row.dataset[select.dataset.key].split("|").includes(select.value));
      row.hidden = !kept;
      shown += kept;
    }
    count.textContent = `${shown} of ${rows.length} data sets`;
  }
  field("Search", search);
  const selects = [
    choice("Organ", "organ"),
    choice("Species", "species"),
    choice("Technology", "technology"),
    choice("Kind", "kind", { scrna: "single cells", spatial: "sections", slide: "slide alone" }),
    choice("Commercial use", "commercial", { yes: "allowed", no: "not allowed", open: "not confirmed" }),
    choice("Loader", "loader"),
  ];
  bar.append(count);
  box.before(bar);

  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  [...box.querySelectorAll("thead th")].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      box.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = rows.toSorted((a, b) => {
        const [left, right] = [value(a, column), value(b, column)];
        // Unknown values stay at the end, whichever way the others run.
        if (!left || !right) return Number(!left) - Number(!right);
        const difference = head.dataset.kind === "number" ? Number(left) - Number(right) : order.compare(left, right);
        return down ? -difference : difference;
      });
      body.append(...sorted);
    });
  });
  show();
})();
