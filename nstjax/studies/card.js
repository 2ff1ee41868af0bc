"use strict";
// Tables: a heading's button sorts by its column, and again the other way round; what is missing stays last.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const numeric = heading.classList.contains("number");
    const compare = (a, b) => numeric ? a - b : a.localeCompare(b, "en", {numeric: true});
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return ascending ? compare(a, b) : compare(b, a);
    });
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
// Boxes that scroll: shades at their sides show where there is more; those that do not scroll need no focus.
for (const box of document.querySelectorAll(".scroll")) {
  const shade = () => {
    const more = box.scrollWidth - box.clientWidth;
    box.parentElement.classList.toggle("before", box.scrollLeft > 1);
    box.parentElement.classList.toggle("after", box.scrollLeft < more - 1);
    box.tabIndex = more > 0 ? 0 : -1;
  };
  box.addEventListener("scroll", shade);
  new ResizeObserver(shade).observe(box);
  shade();
}
// Images: a click shows one large.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const small = button.querySelector("img"), large = dialog.querySelector("img");
    [large.src, large.alt, dialog.querySelector("p").textContent] = [small.src, "", small.alt];
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
