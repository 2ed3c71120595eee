// What runs in the page itself: its colours, its address, its pictures.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  ui: {
    // Figures are drawn by the server, so it is told which scheme the page is shown in.
    scheme: function () {
      const dark = window.matchMedia("(prefers-color-scheme: dark)");
      dark.onchange = () => window.dash_clientside.set_props("theme", { data: dark.matches ? "dark" : "light" });
      return dark.matches ? "dark" : "light";
    },
    // The slider and the number beside it are one value; what is being moved is left alone.
    follow: function (slid, typed) {
      const still = window.dash_clientside.no_update;
      const moved = window.dash_clientside.callback_context.triggered.map((each) => each.prop_id);
      return moved.includes("e-sla-number.value") && typed ? [typed, still] : [still, Number(slid)];
    },
    // A file that the server would refuse is not sent to it.
    bounded: function (contents, limits) {
      const still = window.dash_clientside.no_update;
      if (!contents) return [still, still];
      return contents.length > limits.letters ? [null, limits.said] : [contents, ""];
    },
    // The state lives in the address: a reload, a bookmark or a link shows the same.
    address: function (query) {
      if (query === undefined || query === null) return window.dash_clientside.no_update;
      const path = window.location.pathname;
      window.history.replaceState(window.history.state, "", query ? path + "?" + query : path);
      return query;
    },
  },
});

// A button named PNG saves the figure of its own <figure>.
document.addEventListener("click", (event) => {
  const button = event.target.closest("figure button.small");
  if (!button) return;
  event.preventDefault();
  const plot = button.closest("figure").querySelector(".js-plotly-plot");
  const name = button.closest("figure").querySelector(".plot").id;
  if (plot) window.Plotly.downloadImage(plot, { format: "png", filename: name, scale: 2, width: 900, height: 540 });
});

// Dash's lists and steppers are named by their value alone, and no field knows of its error: all are named here.
function describe() {
  for (const field of document.querySelectorAll(".field")) {
    const name = field.id.replace(/-field$/, "");
    const label = document.getElementById(name + "-label");
    for (const control of field.querySelectorAll("input, textarea, button.dash-dropdown, .drop button")) {
      control.setAttribute("aria-describedby", name + "-hint " + name + "-error");
      control.setAttribute("aria-invalid", String(Boolean(document.getElementById(name + "-error").textContent)));
      if (control.classList.contains("dash-dropdown-focus-target")) {
        const chosen = [...field.querySelectorAll(".dash-dropdown-value-item")].map((each) => each.textContent);
        control.removeAttribute("aria-hidden");
        control.setAttribute("role", "combobox");
        control.setAttribute("aria-haspopup", "listbox");
        control.setAttribute("aria-label", label.textContent + ": " + chosen.join(", "));
      } else if (control.classList.contains("dash-dropdown")) {
        control.setAttribute("aria-labelledby", name + "-label " + name + "-value");
      } else if (control.tagName === "BUTTON") control.setAttribute("aria-label", label.textContent + ": " + control.textContent);
      else if (label && !control.labels?.length) control.setAttribute("aria-label", label.textContent);
    }
    for (const stepper of field.querySelectorAll(".dash-input-stepper")) {
      const way = stepper.classList.contains("dash-stepper-decrement") ? "Less" : "More";
      stepper.setAttribute("aria-label", way + ": " + label.textContent);
    }
  }
  // A list that is open is a dialog, which hangs at the end of the page.
  for (const open of document.querySelectorAll("[role=dialog]")) {
    const list = document.querySelector("button.dash-dropdown[aria-controls='" + open.id + "']");
    const label = list && document.getElementById(list.id + "-label");
    if (label) open.setAttribute("aria-label", label.textContent);
  }
  // Dash calls a group of radio buttons a list, inside the group that is named; and its arrows are pictures.
  for (const list of document.querySelectorAll(".dash-radioitems, .dash-radioitems [role=option]")) list.setAttribute("role", "presentation");
  for (const icon of document.querySelectorAll("svg.dash-dropdown-trigger-icon, #js-plotly-tester")) icon.setAttribute("aria-hidden", "true");
  for (const hidden of document.querySelectorAll(".drop input")) hidden.tabIndex = -1;  // its button is reached
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === window.location.pathname;
    link.classList.toggle("here", here);
    if (here) document.title = link.textContent + " · DSpark simulator";
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}
let waiting = null;
new MutationObserver(() => { clearTimeout(waiting); waiting = setTimeout(describe, 50); })
  .observe(document.documentElement, { childList: true, subtree: true });
