// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/cli/doctor_findings.h"

namespace conclave::cli {

// One problem and what to do about it.
struct Verdict {
  std::string node;    // "w0", "coordinator"
  std::string kind;    // "refused", "clock": for programs
  std::string what;    // "nothing listens on 10.0.0.2:7101"
  std::string remedy;  // "start it there: conclave-worker ..."
};

// In the order of the nodes; none: all is well.
std::vector<Verdict> Judge(const Findings& findings);

// "w0: WHAT; REMEDY"
std::string ToLine(const Verdict& verdict);

}  // namespace conclave::cli
