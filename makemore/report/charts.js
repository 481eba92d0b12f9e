"use strict";
{
  const text = { labelColor: "var(--soft)", titleColor: "var(--soft)", labelFontSize: 12, titleFontSize: 12 };
  const lines = { domainColor: "var(--line)", gridColor: "var(--line)", tickColor: "var(--line)" };
  const config = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null, continuousHeight: 240 },
    axis: { ...text, ...lines, titleFontWeight: "normal", tickCount: 5, labelSeparation: 10 },
    axisX: { grid: false },
    legend: { labelColor: "var(--soft)", labelFontSize: 12, symbolType: "circle", symbolOpacity: 1 },
    axisY: { titleAngle: 0, titleAlign: "left", titleBaseline: "bottom", titleX: -40, titleY: -8 },
  };
  const patch = (vega) => {
    const marks = (type) => vega.marks.filter((mark) => mark.type === type);
    // Vega-Lite can't place the names of dots without overlaps; Vega can.
    const avoidMarks = marks("symbol").map((mark) => mark.name);
    for (const mark of marks("text")) {
      const size = { signal: "[max(1, width), height]" }; // the width is 0 in a window that is too narrow
      mark.transform = [{ type: "label", size, offset: [7], avoidMarks }];
    }
    // Vega-Lite 6.4 looks for names in the Voronoi cell under the pointer, not in its dot (vega-lite#9707).
    for (const { encode } of marks("path")) {
      const tooltip = encode.update.tooltip;
      tooltip.signal = tooltip.signal.replace(/(?<!datum\.)datum\["run"\]/g, 'datum.datum["run"]');
    }
    return vega;
  };
  const embed = async (chart) => {
    const spec = JSON.parse(chart.nextElementSibling.textContent);
    const options = { actions: false, ast: true, config, renderer: "svg", patch };
    const tooltip = { disableDefaultStyle: true };
    return (await vegaEmbed(chart, spec, { ...options, tooltip })).view;
  };
  const views = Promise.all([...document.querySelectorAll(".chart")].map(embed));
  const names = [...document.querySelectorAll(".key button")];
  for (const name of names) {
    name.addEventListener("click", async () => {
      name.ariaPressed = String(name.ariaPressed !== "true");
      const hidden = names.flatMap((other, row) => (other.ariaPressed === "true" ? [] : [row]));
      for (const view of await views) view.signal("hidden", hidden).runAsync();
    });
  }
}
