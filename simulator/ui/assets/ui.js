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
      const moved = window.dash_clientside.callback_context.triggered_id;
      return moved === "e-sla-number" && typed ? [typed, still] : [still, Number(slid)];
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

// Dash's lists give the keyboard an element without a name, and no field knows of its error: both are named here.
function describe() {
  for (const field of document.querySelectorAll(".field")) {
    const name = field.id.replace(/-field$/, "");
    const label = document.getElementById(name + "-label");
    for (const control of field.querySelectorAll("input, textarea, button.dash-dropdown")) {
      control.setAttribute("aria-describedby", name + "-error");
      if (control.classList.contains("dash-dropdown-focus-target")) {
        const chosen = field.querySelector(".dash-dropdown-value");
        control.removeAttribute("aria-hidden");
        control.setAttribute("role", "combobox");
        control.setAttribute("aria-haspopup", "listbox");
        control.setAttribute("aria-label", label.textContent + ": " + (chosen ? chosen.textContent : ""));
      } else if (label && !control.labels?.length) control.setAttribute("aria-label", label.textContent);
    }
  }
  // Dash calls a group of radio buttons a list, inside the group that is named; and its arrows are pictures.
  for (const list of document.querySelectorAll(".dash-radioitems, .dash-radioitems [role=option]")) list.setAttribute("role", "presentation");
  for (const icon of document.querySelectorAll("svg.dash-dropdown-trigger-icon, #js-plotly-tester")) icon.setAttribute("aria-hidden", "true");
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === window.location.pathname;
    link.classList.toggle("here", here);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}
let waiting = null;
new MutationObserver(() => { clearTimeout(waiting); waiting = setTimeout(describe, 50); })
  .observe(document.documentElement, { childList: true, subtree: true });
