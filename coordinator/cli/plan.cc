// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/plan.h"

#include <algorithm>
#include <boost/json.hpp>
#include <iostream>
#include <optional>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/plan_request.h"
#include "coordinator/cli/table.h"
#include "coordinator/planner/plan.h"

ABSL_FLAG(bool, json, false, "print JSON");

namespace conclave::cli {
namespace {

namespace json = boost::json;
using planner::Holding;
using planner::Plan;
using planner::Request;

constexpr char kSequencesDefault[] = "1,8,32";
// Another number of workers is worth a word from here on.
constexpr double kWorthSaying = 1.02;

std::string Gb(uint64_t bytes) {
  const double gb = static_cast<double>(bytes) * 1e-9;
  return Fixed(gb, gb < 1 ? 3 : 1);  // a small model's numbers, too
}

struct Case {
  int32_t sequences = 1;
  absl::StatusOr<Plan> plan;
  std::vector<double> by_workers;
  // As the cluster file places the experts; null without one.
  std::optional<absl::StatusOr<Plan>> as_placed;
};

std::vector<Case> Solve(const PlanRequest& asked,
                        const std::vector<int32_t>& counts) {
  Request r = asked.request;
  std::vector<Case> out;
  for (const int32_t sequences : counts) {
    r.sequences = sequences;
    out.push_back({sequences,
                   planner::MakePlan(r),
                   planner::DecodeByWorkers(r),
                   std::nullopt});
    if (!asked.placement) continue;
    absl::StatusOr<Plan> placed = planner::PlanOf(r, *asked.placement);
    if (placed.ok() && asked.caches.has_value()) {
      // Reserved for all sequences that the limits allow.
      placed->nodes[0].kv = asked.caches->kv;
      placed->nodes[0].state = asked.caches->state;
    }
    out.back().as_placed = std::move(placed);
  }
  return out;
}

std::string Share(const Plan& plan, const Holding& h) {
  if (h.units == 0) return "-";
  return plan.split == planner::Split::kColumns
             ? absl::StrCat(h.units * plan.unit, " columns")
             : absl::StrCat(h.units, " experts");
}

void PrintHoldings(const Case& c, const Plan& plan, const Request& r) {
  std::cout << "\n"
            << c.sequences << (c.sequences == 1 ? " sequence" : " sequences")
            << " of " << r.context << " tokens: experts of "
            << plan.local_layers << " layers on the coordinator";
  if (plan.remote_layers > 0) {
    std::cout << ", of " << plan.remote_layers << " on workers (split by "
              << planner::Name(plan.split) << ")";
  }
  std::cout << "; GB:\n";
  std::vector<std::vector<std::string>> rows = {{"node",
                                                 "dense",
                                                 "experts",
                                                 "KV",
                                                 "state",
                                                 "workspace",
                                                 "free",
                                                 "memory",
                                                 "of each remote layer"}};
  for (const Holding& h : plan.nodes) {
    rows.push_back({h.node,
                    Gb(h.dense),
                    Gb(h.experts),
                    Gb(h.kv),
                    Gb(h.state),
                    Gb(h.workspace),
                    Gb(h.Headroom()),
                    Gb(h.memory),
                    Share(plan, h)});
  }
  std::cout << FormatTable(rows);
}

std::vector<std::string> SpeedRow(int32_t sequences,
                                  const absl::StatusOr<Plan>& plan) {
  if (!plan.ok()) return {absl::StrCat(sequences), "does not fit"};
  const planner::StepTime& t = plan->step;
  const auto part = [&](double seconds) {
    return absl::StrCat(Fixed(100 * seconds / t.Total(), 0), " %");
  };
  const double rate = plan->decode_tokens_per_s;
  return {absl::StrCat(sequences),
          Fixed(rate, 0),
          Fixed(rate / sequences, 1),
          Fixed(t.Total() * 1e3, 2),
          part(t.weights),
          part(t.experts),
          part(t.state),
          part(t.exchange),
          part(t.fixed),
          Fixed(plan->prefill_tokens_per_s, 0)};
}

void PrintSpeeds(const std::vector<Case>& cases, bool as_placed) {
  std::vector<std::vector<std::string>> rows = {{"sequences",
                                                 "decode tok/s",
                                                 "each",
                                                 "ms/step",
                                                 "weights",
                                                 "experts",
                                                 "state",
                                                 "exchange",
                                                 "fixed",
                                                 "prefill tok/s"}};
  for (const Case& c : cases) {
    rows.push_back(SpeedRow(c.sequences, as_placed ? *c.as_placed : c.plan));
  }
  std::cout << FormatTable(rows);
}

// Where fewer workers would be faster.
void PrintAdvice(const Case& c) {
  const auto best = std::max_element(c.by_workers.begin(), c.by_workers.end());
  const auto count = best - c.by_workers.begin();
  const auto all = static_cast<int64_t>(c.by_workers.size()) - 1;
  if (*best == 0 || count == all) return;
  if (c.plan.ok() && *best < c.plan->decode_tokens_per_s * kWorthSaying) return;
  std::cout << "\nadvice: with " << c.sequences << " at once, the fastest "
            << count << " of " << all << " workers reach " << Fixed(*best, 0)
            << " tok/s: use fewer\n";
}

void Print(const PlanRequest& asked, const std::vector<Case>& cases) {
  const Request& r = asked.request;
  for (const std::string& line : asked.measured) {
    std::cout << "measured: " << line << "\n";
  }
  const auto files = planner::CheckpointBytes(r.shape, r.format);
  const auto held = planner::HeldBy(r).bytes;
  std::cout << planner::Name(r.format) << ": checkpoint " << files.Total()
            << " bytes with vision; resident "
            << held.embedding + held.dense + held.experts
            << " bytes without vision\nMTP " << held.mtp
            << " bytes, not loaded\nKV "
            << planner::KvBytesPerToken(r.shape, r.kv_element_bytes)
            << " bytes a token, GDN state "
            << planner::StateBytes(r.shape, r.state_element_bytes)
            << " bytes a sequence; one expert " << held.expert << " bytes\n";
  for (const Case& c : cases) {
    if (c.plan.ok()) {
      PrintHoldings(c, *c.plan, r);
    } else {
      std::cout << "\n"
                << c.sequences << " x " << r.context
                << " tokens: does not fit: " << c.plan.status().message()
                << "\n";
    }
  }
  if (std::any_of(
          cases.begin(), cases.end(), [](auto& c) { return c.plan.ok(); })) {
    std::cout << "\npredicted, without speculation:\n";
    PrintSpeeds(cases, false);
  }
  if (asked.placement) {
    std::cout << "\nas `conclave serve` places the experts (" << asked.how
              << ")";
    if (cases[0].as_placed->ok()) {
      PrintHoldings(cases[0], **cases[0].as_placed, r);
    }
    std::cout << "\npredicted, placed so:\n";
    PrintSpeeds(cases, true);
  }
  if (!asked.refusal.empty()) {
    std::cout << "\n`conclave serve` would refuse this file with its limits: "
              << asked.refusal << "\n";
  }
  for (const Case& c : cases) PrintAdvice(c);
  std::vector<std::string> stated;
  for (const planner::Node& node : r.nodes) {
    if (!node.measured) stated.push_back(node.device);
  }
  if (!stated.empty()) {
    std::cout << "\nnote: " << stated[0]
              << (stated.size() > 1 ? " and others are" : " is")
              << " planned from a data sheet, not from a measurement\n";
  }
}

json::object StepJson(const Plan& p) {
  return {{"weights", p.step.weights},
          {"experts", p.step.experts},
          {"state", p.step.state},
          {"exchange", p.step.exchange},
          {"fixed", p.step.fixed}};
}

json::array NodesJson(const Plan& p) {
  json::array nodes;
  for (const Holding& h : p.nodes) {
    nodes.push_back(json::object{{"node", h.node},
                                 {"dense_bytes", h.dense},
                                 {"expert_bytes", h.experts},
                                 {"kv_bytes", h.kv},
                                 {"state_bytes", h.state},
                                 {"workspace_bytes", h.workspace},
                                 {"memory_bytes", h.memory},
                                 {"units", h.units}});
  }
  return nodes;
}

json::object ToJson(const Case& c) {
  json::object out{{"sequences", c.sequences}, {"fits", c.plan.ok()}};
  json::array by_workers;
  for (const double rate : c.by_workers) by_workers.push_back(rate);
  out["decode_tokens_per_s_by_workers"] = std::move(by_workers);
  if (c.as_placed && c.as_placed->ok()) {
    out["as_placed"] = json::object{
        {"nodes", NodesJson(**c.as_placed)},
        {"decode_tokens_per_s", (*c.as_placed)->decode_tokens_per_s},
        {"prefill_tokens_per_s", (*c.as_placed)->prefill_tokens_per_s},
        {"step_seconds", StepJson(**c.as_placed)}};
  }
  if (!c.plan.ok()) {
    out["error"] = std::string(c.plan.status().message());
    return out;
  }
  const Plan& p = *c.plan;
  out["local_layers"] = p.local_layers;
  out["remote_layers"] = p.remote_layers;
  out["split"] = std::string(planner::Name(p.split));
  out["unit_columns"] = p.unit;
  out["decode_tokens_per_s"] = p.decode_tokens_per_s;
  out["prefill_tokens_per_s"] = p.prefill_tokens_per_s;
  out["step_seconds"] = StepJson(p);
  out["nodes"] = NodesJson(p);
  return out;
}

absl::Status MakeAndPrint(bool* fits) {
  ASSIGN_OR_RETURN(const PlanRequest asked, PlanRequestFromFlags());
  const Request& r = asked.request;
  ASSIGN_OR_RETURN(const auto counts,
                   Counts(absl::GetFlag(FLAGS_sequences), kSequencesDefault));
  const std::vector<Case> cases = Solve(asked, counts);
  *fits = std::any_of(
      cases.begin(), cases.end(), [](const Case& c) { return c.plan.ok(); });
  if (!absl::GetFlag(FLAGS_json)) {
    Print(asked, cases);
    return absl::OkStatus();
  }
  const auto files = planner::CheckpointBytes(r.shape, r.format);
  const auto held = planner::HeldBy(r).bytes;
  json::array plans;
  for (const Case& c : cases) plans.push_back(ToJson(c));
  json::array measured;
  for (const std::string& line : asked.measured) measured.emplace_back(line);
  std::cout << json::serialize(json::object{
                   {"format", std::string(planner::Name(r.format))},
                   {"context", r.context},
                   {"checkpoint_bytes", files.Total()},
                   {"resident_bytes",
                    held.embedding + held.dense + held.experts},
                   {"mtp_bytes", held.mtp},
                   {"measured", std::move(measured)},
                   {"plans", std::move(plans)}})
            << "\n";
  return absl::OkStatus();
}

int Run(const std::vector<std::string>&) {
  bool fits = false;
  const absl::Status status = MakeAndPrint(&fits);
  if (!status.ok()) return Fail("plan", status);
  return fits ? 0 : 1;
}

}  // namespace

Command PlanCommand() {
  return {.name = "plan",
          .summary = "What fits where and how fast it will be.",
          .usage = "plan (--shape S --format F --nodes LIST | --config FILE)",
          .examples =
              "  conclave plan --shape 122b-a10b --format mlx4 --nodes h200\n"
              "  conclave plan --shape 397b-a17b --format mlx4 --nodes "
              "h200,4xm3-ultra-96 --sequences 1,8\n"
              "  conclave plan --shape 397b-a17b --format mlx4 --nodes "
              "h200,h200 --link-us 10 --link-gbs 370\n"
              "  conclave plan --config cluster.yaml --json   # its device: "
              "lines say what the machines are\n"
              "  conclave plan --config cluster.yaml --links links.yaml   # "
              "as conclave doctor --out measured it\n",
          .flags = {"shape",
                    "format",
                    "nodes",
                    "config",
                    "model",
                    "links",
                    "context",
                    "sequences",
                    "kv_dtype",
                    "gdn_state",
                    "link_us",
                    "link_gbs",
                    "json"},
          .run = Run};
}

}  // namespace conclave::cli
