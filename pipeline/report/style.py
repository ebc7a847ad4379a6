"""The style sheet of a page, and the script that filters its examples."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6972; --rule: #e1e5e8; --paper: #fff; --tint: #f5f6f7;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #4a1642; --warn: #a33a2a; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --soft: #9da6ae; --rule: #30353a;
  --paper: #16181b; --tint: #1e2124; --s0: #56b4e9; --s1: #e69f00; --s2: #009e73; --s3: #f5e9a0; --warn: #ec8d7d; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Noto Sans CJK SC",
  "Microsoft YaHei", sans-serif; font-variant-numeric: tabular-nums; }
header p { margin: 0; color: var(--soft); font-size: .87rem; overflow-wrap: anywhere; }
h1 { margin: .1rem 0 .2rem; font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { margin: 3.25rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--ink); font-size: 1.25rem;
  font-weight: 650; }
h3 { margin: 2rem 0 .6rem; font-size: 1rem; font-weight: 650; overflow-wrap: anywhere; }
a { color: var(--s0); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: 1rem; font-size: .87rem; }
.aside, .note { color: var(--soft); font-size: .87rem; font-weight: 400; }
.warning { margin: 1.5rem 0 0; padding-left: .75rem; border-left: 3px solid var(--warn); color: var(--warn);
  overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .9rem 2.25rem; margin: 1.5rem 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.15rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { width: 100%; border-spacing: 0; font-size: .9rem; }
th, td { padding: .34rem 0 .34rem 1.5rem; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; text-align: left; font-weight: 400; }
.wide th:first-child { position: sticky; left: 0; min-width: 7rem; padding-right: .5rem; background: var(--paper);
  white-space: normal; overflow-wrap: break-word; }
thead th, thead .aside { color: var(--soft); font-weight: 400; font-size: .8rem; border-bottom: 1px solid var(--rule);
  white-space: normal; vertical-align: bottom; }
thead .aside { border: 0; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.bar { display: block; height: 3px; margin-top: 1px; min-width: 3rem; background:
  linear-gradient(var(--s0), var(--s0)) left / var(--share) 100% no-repeat, var(--rule); print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem 2rem; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17.5rem), 1fr)); }
figure { margin: .5rem 0; max-width: 30rem; break-inside: avoid; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline; margin-bottom: .35rem;
  font-size: .87rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
.key::before { content: ""; display: inline-block; width: 1.3rem; margin: 0 .35rem .2rem 0; border-top: 3px solid; }
.key.s0::before { color: var(--s0); } .key.s1::before { color: var(--s1); border-top-style: dashed; }
.key.s2::before { color: var(--s2); border-top-style: dotted; }
.key.s3::before { color: var(--s3); border-top-style: double; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; } .small svg text { font-size: 13.5px; } .small .key { display: none; }
 .end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--rule); fill: none; }
.area { stroke-width: 1.25; fill-opacity: .2; } .line { fill: none; stroke-width: 1.75; stroke-linecap: butt;
  stroke-linejoin: round; }
path.s0 { stroke: var(--s0); } path.s1 { stroke: var(--s1); stroke-dasharray: 6 3; }
path.s2 { stroke: var(--s2); stroke-dasharray: 2 2; } path.s3 { stroke: var(--s3); stroke-dasharray: 10 3 2 3; }
.area.s0 { fill: var(--s0); } .area.s1 { fill: var(--s1); } .area.s2 { fill: none; } .area.s3 { fill: none; }
path.mark { stroke: currentColor; stroke-dasharray: 3 3; } svg text.mark { fill: currentColor;
  stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
.filters { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; align-items: baseline; font-size: .87rem; }
.filters > * { max-width: 100%; font: inherit; }
.examples { table-layout: fixed; }
.examples th, .examples td { padding-left: .9rem; text-align: left; white-space: normal; overflow-wrap: anywhere; }
.examples th:first-child, .examples td:first-child { padding-left: 0; }
.examples th:nth-child(1) { width: 4rem; } .examples th:nth-child(4) { width: 4rem; }
.examples th:nth-child(2), .examples th:nth-child(3) { width: 8.5rem; } .examples th:nth-child(6) { width: 38%; }
.examples tr { break-inside: avoid; }
.examples dl { display: grid; grid-template-columns: 4rem minmax(0, 1fr); gap: .1rem .5rem; margin: 0; }
.examples dt { color: var(--soft); font-size: .8rem; line-height: 1.75; }
.examples dd { margin: 0; }
@media (max-width: 44rem) { body { padding-top: 1.5rem; } th, td { padding-left: .9rem; }
  .wide th:first-child { overflow-wrap: anywhere; } }
@media print, (max-width: 44rem) { .examples thead { display: none; }
  .examples tr { display: block; padding: .6rem 0; border-top: 1px solid var(--rule); }
  .examples td, .examples td:first-child { display: inline-block; padding: 0 .7rem 0 0; border: 0; }
  .examples td:nth-child(-n+4) { color: var(--soft); font-size: .8rem; }
  .examples td:nth-child(2) { color: var(--ink); font-weight: 600; }
  .examples td:nth-child(4)::before { content: "of "; }
  .examples td:nth-child(5), .examples td:nth-child(6) { display: block; } }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 9pt; } nav, .filters {
  display: none !important; } .wide { overflow: visible; } th, td { padding-left: .7rem; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; } .charts { grid-template-columns: 1fr 1fr; }
  .charts.small { grid-template-columns: 1fr 1fr 1fr; } .wide th:first-child {
  position: static; background: none; } }
"""
"""The colours of series are three of Okabe and Ito's, made for all kinds of colour vision, and one close to the ink."""

SCRIPT = """
const table = document.querySelector(".examples"), filters = document.querySelector(".filters");
if (table) {
  const rows = [...table.tBodies[0].rows], search = filters.querySelector("input");
  const selects = [...filters.querySelectorAll("select")], shown = filters.querySelector("output");
  const text = (row, select) => row.cells[select.dataset.column].textContent;
  for (const select of selects) {
    for (const name of new Set(rows.map((row) => text(row, select)))) select.add(new Option(name, name));
  }
  const filter = () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted) ||
        selects.some((select) => select.value && select.value !== text(row, select));
    }
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  filters.addEventListener("input", filter);
  filters.hidden = false;
  filter();
}
"""
"""Fills the selects from the table and hides the rows that don't match. Without it, the table is simply all there."""
