// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace conclave::cli {

// Rows of text, the first is the heading; columns padded to one width, the
// first column left, the others right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

// "12.3", with so many digits after the point.
std::string Fixed(double value, int digits);

// The middle of an unsorted list; 0 of none.
double Median(std::vector<double> values);

// "AMD EPYC ..., 2 cores", for the head of a benchmark.
std::string MachineName();

}  // namespace conclave::cli
