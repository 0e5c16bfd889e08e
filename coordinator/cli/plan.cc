// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/plan.h"

#include <algorithm>
#include <boost/json.hpp>
#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/checkpoint.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/table.h"
#include "coordinator/planner/plan.h"

ABSL_FLAG(std::string, shape, "", "35b-a3b, 122b-a10b or 397b-a17b");
ABSL_FLAG(std::string, format, "", "bf16, fp8, gptq-int4, mlx4 or mlx8");
ABSL_FLAG(std::string,
          nodes,
          "",
          "COUNTxDEVICE[-GB], comma list; the first is the coordinator");
ABSL_FLAG(std::string, kv_dtype, "bf16", "keys and values: bf16, fp8 or f32");
ABSL_FLAG(std::string, state_dtype, "f32", "GDN state: f32 or bf16");
ABSL_FLAG(double, link_us, 0, "round trip to each worker; 0: 150");
ABSL_FLAG(double, link_gbs, 0, "GB/s of each link, each way; 0: 1.18");
ABSL_FLAG(bool, json, false, "print JSON");

namespace conclave::cli {
namespace {

namespace json = boost::json;
using planner::Holding;
using planner::Plan;
using planner::Request;

constexpr int32_t kContextDefault = 16384;
constexpr char kSequencesDefault[] = "1,8,32";
// Another number of workers is worth a word from here on.
constexpr double kWorthSaying = 1.02;

std::string Gb(uint64_t bytes) {
  return Fixed(static_cast<double>(bytes) * 1e-9, 1);
}

absl::StatusOr<int32_t> ElementBytes(const std::string& flag,
                                     const std::string& word) {
  if (word == "f32") return 4;
  if (word == "bf16") return 2;
  if (word == "fp8" && flag == "--kv-dtype") return 1;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " ", word, " is unknown"));
}

void ApplyLink(double round_trip_us, double gb_per_s, planner::Link& link) {
  if (round_trip_us > 0) link.round_trip_s = round_trip_us * 1e-6;
  if (gb_per_s > 0) link.bytes_per_s = gb_per_s * 1e9;
}

absl::StatusOr<std::vector<planner::Node>> NodesOf(
    const v1::ClusterConfig& config) {
  const auto device =
      [](const std::string& field,
         const std::string& name) -> absl::StatusOr<planner::Node> {
    if (name.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, ".device is missing; give it, e.g. h200, or use --nodes"));
    }
    return planner::DeviceOf(name);
  };
  std::vector<planner::Node> nodes;
  ASSIGN_OR_RETURN(planner::Node node,
                   device("coordinator", config.coordinator().device()));
  node.name = "coordinator";
  nodes.push_back(node);
  for (const v1::Worker& worker : config.workers()) {
    ASSIGN_OR_RETURN(
        node, device(absl::StrCat("worker ", worker.name()), worker.device()));
    node.name = worker.name();
    ApplyLink(worker.link_round_trip_us(), worker.link_gb_per_s(), node.link);
    nodes.push_back(node);
  }
  return nodes;
}

absl::StatusOr<Request> RequestFromFlags() {
  Request r;
  const std::string shape = absl::GetFlag(FLAGS_shape);
  const std::string nodes = absl::GetFlag(FLAGS_nodes);
  std::string format = absl::GetFlag(FLAGS_format);
  v1::ClusterConfig config;
  if (shape.empty() || nodes.empty()) {
    if (absl::GetFlag(FLAGS_config).empty() &&
        absl::GetFlag(FLAGS_model).empty()) {
      return absl::InvalidArgumentError(
          "give --shape and --nodes, or --config FILE (see --help)");
    }
    ASSIGN_OR_RETURN(config, ConfigFromFlags());
  }
  if (shape.empty()) {
    ASSIGN_OR_RETURN(const auto checkpoint,
                     checkpoint::Checkpoint::Open(config.model()));
    r.shape = checkpoint->config();
    if (format.empty()) {
      format =
          std::string(planner::Name(planner::FormatOf(r.shape.quantisation)));
    }
  } else {
    ASSIGN_OR_RETURN(r.shape, planner::ShapeOf(shape));
  }
  if (format.empty()) {
    return absl::InvalidArgumentError(
        "--shape needs --format, e.g. --format mlx4");
  }
  ASSIGN_OR_RETURN(r.format, planner::ParseFormat(format));
  if (nodes.empty()) {
    ASSIGN_OR_RETURN(r.nodes, NodesOf(config));
  } else {
    ASSIGN_OR_RETURN(r.nodes, planner::ParseNodes(nodes));
  }
  for (planner::Node& node : r.nodes) {
    ApplyLink(
        absl::GetFlag(FLAGS_link_us), absl::GetFlag(FLAGS_link_gbs), node.link);
  }
  ASSIGN_OR_RETURN(r.kv_element_bytes,
                   ElementBytes("--kv-dtype", absl::GetFlag(FLAGS_kv_dtype)));
  ASSIGN_OR_RETURN(
      r.state_element_bytes,
      ElementBytes("--state-dtype", absl::GetFlag(FLAGS_state_dtype)));
  const int32_t context = absl::GetFlag(FLAGS_context);
  r.context = context > 0 ? context : kContextDefault;
  if (r.context > r.shape.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context ",
                     r.context,
                     ": the model has ",
                     r.shape.max_position_embeddings));
  }
  return r;
}

struct Case {
  int32_t sequences = 1;
  absl::StatusOr<Plan> plan;
  std::vector<double> by_workers;
};

std::vector<Case> Solve(Request r, const std::vector<int32_t>& counts) {
  std::vector<Case> out;
  for (const int32_t sequences : counts) {
    r.sequences = sequences;
    out.push_back(
        {sequences, planner::MakePlan(r), planner::DecodeByWorkers(r)});
  }
  return out;
}

std::string Share(const Plan& plan, const Holding& h) {
  if (h.units == 0) return "-";
  return plan.split == planner::Split::kColumns
             ? absl::StrCat(h.units * plan.unit, " columns")
             : absl::StrCat(h.units, " experts");
}

void PrintHoldings(const Case& c, const Request& r) {
  const Plan& plan = *c.plan;
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

void PrintSpeeds(const std::vector<Case>& cases) {
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
    if (!c.plan.ok()) {
      rows.push_back({absl::StrCat(c.sequences), "does not fit"});
      continue;
    }
    const planner::StepTime& t = c.plan->step;
    const auto part = [&](double seconds) {
      return absl::StrCat(Fixed(100 * seconds / t.Total(), 0), " %");
    };
    const double rate = c.plan->decode_tokens_per_s;
    rows.push_back({absl::StrCat(c.sequences),
                    Fixed(rate, 0),
                    Fixed(rate / c.sequences, 1),
                    Fixed(t.Total() * 1e3, 2),
                    part(t.weights),
                    part(t.experts),
                    part(t.state),
                    part(t.exchange),
                    part(t.fixed),
                    Fixed(c.plan->prefill_tokens_per_s, 0)});
  }
  std::cout << "\npredicted, without speculation:\n" << FormatTable(rows);
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

void Print(const Request& r, const std::vector<Case>& cases) {
  const auto files = planner::CheckpointBytes(r.shape, r.format);
  const auto held = planner::ResidentBytes(r.shape, r.format);
  std::cout << planner::Name(r.format) << ": checkpoint " << files.Total()
            << " bytes with vision; resident "
            << held.embedding + held.dense + held.experts
            << " bytes without vision, MTP " << held.mtp << " bytes\n"
            << "KV " << planner::KvBytesPerToken(r.shape, r.kv_element_bytes)
            << " bytes a token, GDN state "
            << planner::StateBytes(r.shape, r.state_element_bytes)
            << " bytes a sequence; one expert " << held.expert << " bytes\n";
  for (const Case& c : cases) {
    if (c.plan.ok()) {
      PrintHoldings(c, r);
    } else {
      std::cout << "\n"
                << c.sequences << " x " << r.context
                << " tokens: does not fit: " << c.plan.status().message()
                << "\n";
    }
  }
  if (std::any_of(
          cases.begin(), cases.end(), [](auto& c) { return c.plan.ok(); })) {
    PrintSpeeds(cases);
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

json::object ToJson(const Case& c) {
  json::object out{{"sequences", c.sequences}, {"fits", c.plan.ok()}};
  json::array by_workers;
  for (const double rate : c.by_workers) by_workers.push_back(rate);
  out["decode_tokens_per_s_by_workers"] = std::move(by_workers);
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
  out["step_seconds"] = json::object{{"weights", p.step.weights},
                                     {"experts", p.step.experts},
                                     {"state", p.step.state},
                                     {"exchange", p.step.exchange},
                                     {"fixed", p.step.fixed}};
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
  out["nodes"] = std::move(nodes);
  return out;
}

absl::Status MakeAndPrint(bool* fits) {
  ASSIGN_OR_RETURN(const Request r, RequestFromFlags());
  ASSIGN_OR_RETURN(const auto counts,
                   Counts(absl::GetFlag(FLAGS_sequences), kSequencesDefault));
  const std::vector<Case> cases = Solve(r, counts);
  *fits = std::any_of(
      cases.begin(), cases.end(), [](const Case& c) { return c.plan.ok(); });
  if (!absl::GetFlag(FLAGS_json)) {
    Print(r, cases);
    return absl::OkStatus();
  }
  const auto files = planner::CheckpointBytes(r.shape, r.format);
  const auto held = planner::ResidentBytes(r.shape, r.format);
  json::array plans;
  for (const Case& c : cases) plans.push_back(ToJson(c));
  std::cout << json::serialize(json::object{
                   {"format", std::string(planner::Name(r.format))},
                   {"context", r.context},
                   {"checkpoint_bytes", files.Total()},
                   {"resident_bytes",
                    held.embedding + held.dense + held.experts},
                   {"mtp_bytes", held.mtp},
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
              "lines say what the machines are\n",
          .flags = {"shape",
                    "format",
                    "nodes",
                    "config",
                    "model",
                    "context",
                    "sequences",
                    "kv_dtype",
                    "state_dtype",
                    "link_us",
                    "link_gbs",
                    "json"},
          .run = Run};
}

}  // namespace conclave::cli
