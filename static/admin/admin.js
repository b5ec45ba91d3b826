// htmx moves the numbers; this only says when they stand still because nobody answers.
for (const event of ["htmx:error", "htmx:response:error"]) {
  document.addEventListener(event, () => { document.getElementById("stale").hidden = false; });
}
document.addEventListener("htmx:after:swap", () => { document.getElementById("stale").hidden = true; });
