// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/doctor.h"

#include <signal.h>

#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/config/cluster_config.h"
#include "common/config/links.h"
#include "common/status_macros.h"
#include "coordinator/cli/doctor_measure.h"
#include "coordinator/cli/doctor_verdicts.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/table.h"

ABSL_FLAG(bool, quick, false, "no decode steps on this machine");
ABSL_DECLARE_FLAG(bool, json);

namespace conclave::cli {
namespace {

namespace json = boost::json;

std::string Or(bool known, const std::string& text) {
  return known ? text : "-";
}

std::string Figure(double value, int digits) {
  return Or(value > 0, Fixed(value, digits));
}

// "0.8 ms", "-3.1 s".
std::string ClockOffset(const cluster::Checkup& checkup) {
  if (!checkup.ok() || !checkup.tells_time) return "-";
  const double offset = checkup.clock_offset_s;
  return std::abs(offset) < 1 ? absl::StrFormat("%+.1f ms", offset * 1e3)
                              : absl::StrFormat("%+.1f s", offset);
}

std::string Memory(double free_gb, double total_gb) {
  if (total_gb <= 0) return "-";
  return absl::StrCat(Fixed(free_gb, 1), "/", Fixed(total_gb, 1));
}

void Print(const Findings& found, const std::vector<Verdict>& verdicts) {
  std::vector<std::vector<std::string>> rows = {{"node",
                                                 "address",
                                                 "version",
                                                 "clock",
                                                 "round trip us",
                                                 "GB/s out",
                                                 "GB/s back",
                                                 "memory GB/s",
                                                 "free/total GB"}};
  const v1::MeasuredCoordinator& home = found.coordinator;
  rows.push_back({"coordinator",
                  found.listen,
                  found.version,
                  "-",
                  "-",
                  Figure(home.all_out_gb_per_s(), 3),
                  Figure(home.all_back_gb_per_s(), 3),
                  Figure(home.memory_gb_per_s(), 1),
                  Memory(home.memory_free_gb(), home.memory_total_gb())});
  for (const WorkerFindings& f : found.workers) {
    const v1::MeasuredWorker& w = f.figures;
    rows.push_back({w.name(),
                    w.address(),
                    Or(!f.checkup.version.empty(), f.checkup.version),
                    ClockOffset(f.checkup),
                    Figure(w.round_trip_us(), 0),
                    Figure(w.out_gb_per_s(), 3),
                    Figure(w.back_gb_per_s(), 3),
                    Figure(w.memory_gb_per_s(), 1),
                    Memory(w.memory_free_gb(), w.memory_total_gb())});
  }
  std::cout << FormatTable(rows);
  for (const v1::MeasuredStep& step : home.steps()) {
    std::cout << "a step of " << step.sequences()
              << (step.sequences() == 1 ? " sequence" : " sequences")
              << " without experts takes " << Fixed(step.step_us(), 0)
              << " us here\n";
  }
  std::cout << "\n";
  for (const Verdict& verdict : verdicts) {
    std::cout << ToLine(verdict) << "\n";
  }
  if (verdicts.empty()) std::cout << "no problems found\n";
}

json::object ToJson(const Findings& found,
                    const std::vector<Verdict>& verdicts) {
  const v1::MeasuredCoordinator& home = found.coordinator;
  json::array steps, workers, problems;
  for (const v1::MeasuredStep& step : home.steps()) {
    steps.push_back(json::object{{"sequences", step.sequences()},
                                 {"step_us", step.step_us()},
                                 {"overlap_us", step.overlap_us()},
                                 {"fan_out_us", step.fan_out_us()}});
  }
  for (const WorkerFindings& f : found.workers) {
    const v1::MeasuredWorker& w = f.figures;
    json::object one{{"name", w.name()},
                     {"address", w.address()},
                     {"reached", f.checkup.ok()},
                     {"version", f.checkup.version},
                     {"simd", f.checkup.simd},
                     {"threads", f.checkup.threads},
                     {"serving", f.checkup.generation != 0},
                     {"round_trip_us", w.round_trip_us()},
                     {"out_gb_per_s", w.out_gb_per_s()},
                     {"back_gb_per_s", w.back_gb_per_s()},
                     {"memory_gb_per_s", w.memory_gb_per_s()},
                     {"memory_free_gb", w.memory_free_gb()},
                     {"memory_total_gb", w.memory_total_gb()},
                     {"expert_call_us", w.expert_call_us()},
                     {"expert_gb_per_s", w.expert_gb_per_s()},
                     {"expert_row_share", w.expert_row_share()},
                     {"needs_bytes", f.needs_bytes}};
    if (f.checkup.ok() && f.checkup.tells_time) {
      one["clock_offset_s"] = f.checkup.clock_offset_s;
    }
    workers.push_back(std::move(one));
  }
  for (const Verdict& v : verdicts) {
    problems.push_back(json::object{{"node", v.node},
                                    {"kind", v.kind},
                                    {"what", v.what},
                                    {"remedy", v.remedy}});
  }
  return {{"version", found.version},
          {"coordinator",
           {{"listen", found.listen},
            {"all_out_gb_per_s", home.all_out_gb_per_s()},
            {"all_back_gb_per_s", home.all_back_gb_per_s()},
            {"memory_gb_per_s", home.memory_gb_per_s()},
            {"memory_free_gb", home.memory_free_gb()},
            {"memory_total_gb", home.memory_total_gb()},
            {"needs_bytes", found.needs_bytes},
            {"steps", std::move(steps)}}},
          {"workers", std::move(workers)},
          {"problems", std::move(problems)}};
}

absl::Status Write(const std::string& path, const v1::Links& links) {
  std::ofstream file(path);
  file << "# Written by conclave doctor, for conclave plan --links.\n"
       << config::LinksToYaml(links);
  file.close();
  return file ? absl::OkStatus()
              : absl::PermissionDeniedError(
                    absl::StrCat("--out ", path, ": cannot be written"));
}

absl::Status Doctor(bool* well) {
  const std::string file = absl::GetFlag(FLAGS_config);
  if (file.empty()) {
    return absl::InvalidArgumentError("give --config FILE, the cluster to see");
  }
  DoctorOptions options;
  ASSIGN_OR_RETURN(options.config, config::LoadClusterConfig(file));
  RETURN_IF_ERROR(ApplyFlags(&options.config));
  RETURN_IF_ERROR(UseProcessFlags(options.config.coordinator().simd()));
  options.quick = absl::GetFlag(FLAGS_quick);
  options.clock = RealClock();
  options.say = [](const std::string& line) {
    std::cerr << "doctor: " << line << "\n";
  };
  ASSIGN_OR_RETURN(const Findings found, Examine(options));
  const std::vector<Verdict> verdicts = Judge(found);
  *well = verdicts.empty();
  if (absl::GetFlag(FLAGS_json)) {
    std::cout << json::serialize(ToJson(found, verdicts)) << "\n";
  } else {
    Print(found, verdicts);
  }
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() ? absl::OkStatus() : Write(out, LinksOf(found));
}

int Run(const std::vector<std::string>&) {
  signal(SIGPIPE, SIG_IGN);  // peers that hang up are findings
  bool well = false;
  const absl::Status status = Doctor(&well);
  if (!status.ok()) return Fail("doctor", status);
  return well ? 0 : 1;
}

}  // namespace

Command DoctorCommand() {
  return {.name = "doctor",
          .summary = "Reach and measure every node of a cluster.",
          .usage = "doctor --config FILE",
          .examples =
              "  conclave doctor --config cluster.yaml\n"
              "  conclave doctor --config cluster.yaml --out links.yaml && "
              "conclave plan --config cluster.yaml --links links.yaml\n"
              "  conclave doctor --config cluster.yaml --quick --json   # exit "
              "code 1: there are problems\n",
          .flags = {"config",
                    "model",
                    "out",
                    "quick",
                    "json",
                    "simd",
                    "activations",
                    "log_level"},
          .run = Run};
}

}  // namespace conclave::cli
