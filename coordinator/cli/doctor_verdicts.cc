// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/doctor_verdicts.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "coordinator/cli/table.h"

namespace conclave::cli {
namespace {

using cluster::Reach;

constexpr double kClockSkewMax_s = 1;
// A link is odd when it is so many times worse than the others' median, and a
// round trip only where it also costs this much.
constexpr double kOddTimes = 3;
constexpr double kOddRoundTrip_us = 100;
constexpr char kCoordinator[] = "coordinator";
constexpr char kSameVersion[] = "run the same version on both sides";

std::string Gb(double bytes) { return Fixed(bytes * 1e-9, 1) + " GB"; }

std::string StartIt(const v1::Worker& w) {
  return absl::StrCat(
      "start it there (conclave-worker --config FILE --name ", w.name(), ")");
}

Verdict OfReach(const WorkerFindings& f) {
  const v1::Worker& w = f.worker;
  const std::string at = w.address();
  const std::string why = f.checkup.reach.detail;
  const std::string words = why.empty() ? "" : absl::StrCat(" (", why, ")");
  switch (f.checkup.reach.reach) {
    case Reach::kBadName:
      return {w.name(),
              "dns",
              absl::StrCat("the host of ", at, " is unknown", words),
              "mend the address in the file, or the name service"};
    case Reach::kRefused:
      return {w.name(),
              "refused",
              absl::StrCat("nothing listens on ", at, words),
              StartIt(w) + ", or mend its address in the file"};
    case Reach::kNoAnswer:
      return {w.name(),
              "timeout",
              absl::StrCat("no answer from ", at, words),
              "is the machine up, and does its firewall let the port in?"};
    case Reach::kNoRoute:
      return {w.name(),
              "no_route",
              absl::StrCat("no way to ", at, words),
              "check the address and this machine's routes"};
    case Reach::kNoTls:
      return {w.name(),
              "tls",
              absl::StrCat(at, " speaks no TLS", words),
              "give the worker the file with tls.ca, tls.cert and tls.key, "
              "and start it again"};
    case Reach::kWantsTls:
      return {w.name(),
              "tls",
              absl::StrCat(at, " wants TLS and the file has no tls section"),
              "set tls.ca, tls.cert and tls.key in the file"};
    case Reach::kBadPeerCert:
      return {w.name(),
              "tls",
              absl::StrCat("the certificate of ", at, " is not trusted", words),
              "sign it with the CA in tls.ca, for the host that the address "
              "names"};
    case Reach::kRefusesCert:
      return {w.name(),
              "tls",
              absl::StrCat(at, " refuses our certificate", words),
              "sign tls.cert with the CA that the worker has in tls.ca"};
    case Reach::kHangs:
      return {w.name(),
              "hangs",
              absl::StrCat(at, " accepts connections and says nothing"),
              "the worker is stopped or overloaded: look at it, or start it "
              "again"};
    case Reach::kStranger:
    case Reach::kOk:
      break;
  }
  return {w.name(),
          "stranger",
          absl::StrCat("what listens on ", at, " is no conclave-worker", words),
          "free the port or choose another, and start the worker there"};
}

// Errors of calls carry the worker's name and address already.
Verdict OfStatus(const WorkerFindings& f,
                 const std::string& kind,
                 const absl::Status& status) {
  std::string what(status.message());
  if (absl::IsUnimplemented(status)) {
    return {f.worker.name(), "version", what, kSameVersion};
  }
  // Refusals say themselves what to do.
  const size_t cut = what.rfind("; ");
  if (cut == std::string::npos) {
    return {f.worker.name(), kind, what, "look at the worker's log"};
  }
  return {f.worker.name(), kind, what.substr(0, cut), what.substr(cut + 2)};
}

std::string KindOf(const absl::Status& control) {
  if (!absl::IsFailedPrecondition(control)) return "control";
  const std::string words(control.message());
  return absl::StrContains(words, "protocol") ? "version" : "identity";
}

void JudgeClockAndVersion(const Findings& all,
                          const WorkerFindings& f,
                          std::vector<Verdict>* out) {
  const cluster::Checkup& c = f.checkup;
  if (c.version != all.version || !c.tells_time) {
    out->push_back(
        {f.worker.name(),
         "version",
         absl::StrCat(
             "runs conclave ", c.version, ", the coordinator ", all.version),
         kSameVersion});
  }
  if (c.tells_time &&
      std::abs(c.clock_offset_s) - c.clock_error_s > kClockSkewMax_s) {
    out->push_back(
        {f.worker.name(),
         "clock",
         absl::StrCat("its clock is ",
                      Fixed(std::abs(c.clock_offset_s), 1),
                      c.clock_offset_s > 0 ? " s ahead" : " s behind"),
         "keep both clocks by NTP: certificates and logs go by "
         "them"});
  }
}

double MedianOfOthers(const Findings& all,
                      const WorkerFindings& f,
                      double (v1::MeasuredWorker::*field)() const) {
  std::vector<double> others;
  for (const WorkerFindings& other : all.workers) {
    const double value = (other.figures.*field)();
    if (&other != &f && value > 0) others.push_back(value);
  }
  return Median(std::move(others));
}

void JudgeLink(const Findings& all,
               const WorkerFindings& f,
               std::vector<Verdict>* out) {
  using W = v1::MeasuredWorker;
  const auto slow = [&](const std::string& what) {
    out->push_back({f.worker.name(),
                    "slow_link",
                    what,
                    "check its cable, port speed and switch, or plan it with "
                    "a smaller share"});
  };
  const double trip = MedianOfOthers(all, f, &W::round_trip_us);
  if (trip > 0 && f.figures.round_trip_us() > kOddTimes * trip &&
      f.figures.round_trip_us() > trip + kOddRoundTrip_us) {
    slow(absl::StrCat("its round trip takes ",
                      Fixed(f.figures.round_trip_us(), 0),
                      " us, the others' ",
                      Fixed(trip, 0)));
  }
  for (const auto& [way, field] :
       {std::pair{"to it", &W::out_gb_per_s},
        std::pair{"back from it", &W::back_gb_per_s}}) {
    const double mine = (f.figures.*field)();
    const double others = MedianOfOthers(all, f, field);
    if (mine <= 0 || others <= 0 || mine * kOddTimes >= others) continue;
    slow(absl::StrCat("the way ",
                      way,
                      " carries ",
                      Fixed(mine, 3),
                      " GB/s, the others' ",
                      Fixed(others, 3)));
  }
}

// Nodes with one host share its memory.
void JudgeMemory(const Findings& all, std::vector<Verdict>* out) {
  struct Host {
    double needs = 0;
    double free = 0;
    std::vector<std::string> nodes;
  };
  std::map<std::string, Host> hosts;
  const auto add = [&](const std::string& host,
                       const std::string& node,
                       uint64_t needs,
                       double free_gb) {
    if (needs == 0 || free_gb <= 0) return;
    Host& at = hosts[host];
    at.needs += static_cast<double>(needs);
    at.free = std::max(at.free, free_gb * 1e9);
    at.nodes.push_back(node);
  };
  add("loopback",
      kCoordinator,
      all.needs_bytes,
      all.coordinator.memory_free_gb());
  for (const WorkerFindings& f : all.workers) {
    const auto address = config::ParseHostPort(f.worker.address());
    if (!address.ok()) continue;
    add(config::IsLoopback(*address) ? "loopback" : address->host,
        f.worker.name(),
        f.needs_bytes,
        f.figures.memory_free_gb());
  }
  for (const auto& [name, host] : hosts) {
    if (host.needs <= host.free) continue;
    std::string also;
    for (size_t i = 1; i < host.nodes.size(); ++i) {
      absl::StrAppend(&also, i == 1 ? " (with " : ", ", host.nodes[i]);
    }
    if (!also.empty()) also += " on this machine)";
    out->push_back({host.nodes[0],
                    "memory",
                    absl::StrCat("its part of the model",
                                 also,
                                 " needs ",
                                 Gb(host.needs),
                                 ", ",
                                 Gb(host.free),
                                 " are free"),
                    "give it a smaller share, or end what else runs there"});
  }
}

void JudgeCoordinator(const Findings& all, std::vector<Verdict>* out) {
  if (!all.bind.ok()) {
    out->push_back({kCoordinator,
                    "insecure",
                    std::string(all.bind.message()),
                    "see docs/configuration.md"});
  }
  if (!all.port.ok()) {
    out->push_back({kCoordinator,
                    "port",
                    absl::StrCat("coordinator.listen ",
                                 all.listen,
                                 ": ",
                                 std::string(all.port.message())),
                    "end what listens there, or choose another address"});
  }
  if (!all.model.ok()) {
    out->push_back({kCoordinator,
                    "model",
                    std::string(all.model.message()),
                    "mend model: in the file; without it neither memory nor "
                    "steps can be checked"});
  }
  if (!all.steps.ok()) {
    out->push_back({kCoordinator,
                    "steps",
                    std::string(all.steps.message()),
                    "run it again while nothing else changes the cluster"});
  }
}

}  // namespace

std::vector<Verdict> Judge(const Findings& all) {
  std::vector<Verdict> out;
  JudgeCoordinator(all, &out);
  for (const WorkerFindings& f : all.workers) {
    if (!f.bind.ok()) {
      out.push_back({f.worker.name(),
                     "insecure",
                     std::string(f.bind.message()),
                     "see docs/configuration.md"});
    }
    if (f.checkup.reach.reach != Reach::kOk) {
      out.push_back(OfReach(f));
      continue;
    }
    if (!f.checkup.control.ok()) {
      out.push_back(OfStatus(f, KindOf(f.checkup.control), f.checkup.control));
      continue;
    }
    JudgeClockAndVersion(all, f, &out);
    if (!f.link.ok()) out.push_back(OfStatus(f, "link", f.link));
    if (!f.measured.ok()) out.push_back(OfStatus(f, "measure", f.measured));
    JudgeLink(all, f, &out);
  }
  JudgeMemory(all, &out);
  return out;
}

std::string ToLine(const Verdict& verdict) {
  return absl::StrCat(verdict.node, ": ", verdict.what, "; ", verdict.remedy);
}

}  // namespace conclave::cli
