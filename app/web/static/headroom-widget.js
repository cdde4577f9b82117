// <headroom-widget view="fit" min-vram="24" min-cores="8"></headroom-widget>
// A frame with one of Headroom's widgets. Attributes: view (fit, pools, map, trend, agent), min-vram, min-cores,
// type, pool, agent, theme (light, dark), width and height (CSS lengths).
(() => {
  const base = new URL("./", document.currentScript?.src ?? location.href);
  const PARAMETERS = { "min-vram": "min_vram", "min-cores": "min_cores", type: "type", pool: "pool", agent: "agent_id", theme: "theme" };
  const HEIGHTS = { fit: "100px", pools: "232px", map: "340px", trend: "190px", agent: "128px" };

  class HeadroomWidget extends HTMLElement {
    static observedAttributes = ["view", "width", "height", ...Object.keys(PARAMETERS)];

    constructor() {
      super();
      this.frame = document.createElement("iframe");
      this.frame.loading = "lazy";
      this.frame.referrerPolicy = "no-referrer";
      this.attachShadow({ mode: "open" }).append(this.frame);
    }

    connectedCallback() {
      this.show();
    }

    attributeChangedCallback() {
      if (this.isConnected) this.show();
    }

    show() {
      const view = this.getAttribute("view") ?? "fit";
      const url = new URL(encodeURIComponent(view), base);
      for (const [attribute, parameter] of Object.entries(PARAMETERS)) {
        if (this.hasAttribute(attribute)) url.searchParams.set(parameter, this.getAttribute(attribute));
      }
      this.style.display ||= "block";
      this.frame.title = `Headroom: ${view}`;
      Object.assign(this.frame.style, { border: "0", display: "block", width: this.getAttribute("width") ?? "100%", height: this.getAttribute("height") ?? HEIGHTS[view] ?? "200px" });
      if (this.frame.src !== url.href) this.frame.src = url.href;
    }
  }

  if (!customElements.get("headroom-widget")) customElements.define("headroom-widget", HeadroomWidget);
})();
