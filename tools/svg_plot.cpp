// SPDX-License-Identifier: BSD-3-Clause
#include "tools/svg_plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

namespace snowfabric {
namespace {

constexpr double kWidth = 720, kPanelHeight = 260, kLeft = 90, kRight = 150, kTop = 40,
                 kBottom = 50;
constexpr int kNbTicks = 4;
constexpr std::array kColours{"#1f5fa8", "#c2410c", "#15803d", "#7e22ce"};

/// Where a value lies in a panel.
struct Axes {
  double x_first, x_last, y_last;
  [[nodiscard]] double x(double value) const {
    const double all = std::log2(x_last / x_first);
    const double share = all > 0 ? std::log2(value / x_first) / all : 0.5;
    return kLeft + share * (kWidth - kLeft - kRight);
  }
  [[nodiscard]] double y(double value) const {
    return kPanelHeight - kBottom - value / y_last * (kPanelHeight - kTop - kBottom);
  }
};

std::string number(double value) {
  return value >= 100 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}", value);
}

std::string text(double x, double y, const char* anchor, const std::string& words) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     words);
}

std::string line(double x1, double y1, double x2, double y2) {
  return fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#999\"/>\n", x1, y1,
      x2, y2);
}

Axes axes_of(const std::vector<Panel>& panels, const Panel& panel) {
  Axes axes{panels[0].series[0].points[0].first, 0, 0};
  for (const Panel& any : panels)
    for (const Series& series : any.series) {
      axes.x_first = std::min(axes.x_first, series.points.front().first);
      axes.x_last = std::max(axes.x_last, series.points.back().first);
    }
  for (const Series& series : panel.series)
    for (const auto& point : series.points) axes.y_last = std::max(axes.y_last, point.second);
  if (axes.y_last <= 0) axes.y_last = 1;
  return axes;
}

std::string draw(const Series& series, const Axes& axes, std::size_t number_of_it) {
  const char* colour = kColours[number_of_it % kColours.size()];
  std::string points, dots;
  for (const auto& [x, y] : series.points) {
    points += fmt::format("{:.1f},{:.1f} ", axes.x(x), axes.y(y));
    dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", axes.x(x),
                        axes.y(y), colour);
  }
  const double key_y = kTop + 16.0 * static_cast<double>(number_of_it);
  return fmt::format(
      "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n{}"
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"10\" height=\"10\" fill=\"{}\"/>\n{}",
      points, colour, dots, kWidth - kRight + 16, key_y - 9, colour,
      text(kWidth - kRight + 32, key_y, "start", series.name));
}

std::string draw(const Panel& panel, const Axes& axes, const std::string& x_label) {
  std::string out = text(kLeft, kTop - 16, "start", panel.title) +
                    line(kLeft, axes.y(0), kWidth - kRight, axes.y(0));
  for (int i = 0; i <= kNbTicks; ++i) {
    const double value = axes.y_last * i / kNbTicks;
    out += line(kLeft - 4, axes.y(value), kLeft, axes.y(value)) +
           text(kLeft - 8, axes.y(value) + 4, "end", number(value));
  }
  double last_x = -kWidth;
  for (const auto& point : panel.series[0].points) {
    const double x = axes.x(point.first);
    if (x - last_x < 32) continue;  // no room for its number
    last_x = x;
    out += line(x, axes.y(0), x, axes.y(0) + 4) +
           text(x, axes.y(0) + 18, "middle", number(point.first));
  }
  out += text((kLeft + kWidth - kRight) / 2, axes.y(0) + 36, "middle", x_label);
  for (std::size_t i = 0; i < panel.series.size(); ++i) out += draw(panel.series[i], axes, i);
  return out;
}

}  // namespace

std::string svg_plot(const std::string& x_label, const std::vector<Panel>& panels) {
  const double height = kPanelHeight * static_cast<double>(panels.size());
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"white\"/>\n",
      kWidth, height);
  for (std::size_t i = 0; i < panels.size(); ++i)
    out += fmt::format("<g transform=\"translate(0,{})\">\n{}</g>\n",
                       kPanelHeight * static_cast<double>(i),
                       draw(panels[i], axes_of(panels, panels[i]), x_label));
  return out + "</svg>\n";
}

}  // namespace snowfabric
