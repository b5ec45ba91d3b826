// What was said of the last step is out of date as soon as the mailing goes on to another state.
const state = () => document.querySelector("#live h1 .badge")?.textContent;
const first = state();
document.addEventListener("htmx:after:swap", () => {
  if (state() !== first) document.getElementById("flash")?.remove();
});
// htmx moves the numbers; this only says when they stand still because nobody answers.
for (const event of ["htmx:error", "htmx:response:error"]) {
  document.addEventListener(event, () => { document.getElementById("stale").hidden = false; });
}
document.addEventListener("htmx:after:swap", () => { document.getElementById("stale").hidden = true; });
