// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace snowfabric {

/// A line of a plot; x grows.
struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

/// One above the other, each with its own y axis from 0, all with the same logarithmic x axis.
struct Panel {
  std::string title;
  std::vector<Series> series;
};

/// An SVG 1.1 document. @pre there is a panel, each has a series, each of these a point,
/// and x > 0
[[nodiscard]] std::string svg_plot(const std::string& x_label, const std::vector<Panel>& panels);

}  // namespace snowfabric
