// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/plan_request.h"

#include <algorithm>
#include <memory>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/checkpoint.h"
#include "common/config/links.h"
#include "common/status_macros.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/table.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/engine.h"

ABSL_FLAG(std::string, shape, "", "35b-a3b, 122b-a10b or 397b-a17b");
ABSL_FLAG(std::string,
          format,
          "",
          "bf16, fp8, gptq-int4, mlx3, mlx4, mlx5, mlx6 or mlx8");
ABSL_FLAG(std::string,
          nodes,
          "",
          "COUNTxDEVICE[-GB], comma list; the first is the coordinator");
ABSL_FLAG(double, link_us, 0, "round trip to each worker; 0: 150");
ABSL_FLAG(double, link_gbs, 0, "GB/s of each link, each way; 0: 1.18");
ABSL_FLAG(std::string, links, "", "measurements of conclave doctor --out");

namespace conclave::cli {
namespace {

using planner::Request;

constexpr int32_t kContextDefault = 16384;
// Of a machine that is in no list: products are not measured.
constexpr double kFlopsUnknown = 0.5e12;

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
  if (gb_per_s > 0) link.bytes_per_s = link.back_bytes_per_s = gb_per_s * 1e9;
}

// A machine without a device is what its measurements say.
absl::StatusOr<planner::Node> NodeOf(const std::string& field,
                                     const std::string& device,
                                     bool measured) {
  if (!device.empty()) return planner::DeviceOf(device);
  if (!measured) {
    return absl::InvalidArgumentError(
        absl::StrCat(field,
                     ".device is missing; give it, e.g. h200, measure it "
                     "(conclave doctor --out, --links), or use --nodes"));
  }
  ASSIGN_OR_RETURN(planner::Node node, planner::DeviceOf("cpu"));
  node.device = "machine";
  return node;
}

absl::StatusOr<std::vector<planner::Node>> NodesOf(
    const v1::ClusterConfig& config, const v1::Links& links) {
  std::vector<planner::Node> nodes;
  const bool home = links.coordinator().memory_gb_per_s() > 0;
  ASSIGN_OR_RETURN(planner::Node node,
                   NodeOf("coordinator", config.coordinator().device(), home));
  node.name = "coordinator";
  nodes.push_back(node);
  for (const v1::Worker& worker : config.workers()) {
    const auto* figures = config::FindMeasured(links, worker.name());
    ASSIGN_OR_RETURN(
        node,
        NodeOf(absl::StrCat("worker ", worker.name()),
               worker.device(),
               figures != nullptr && figures->memory_gb_per_s() > 0));
    node.name = worker.name();
    ApplyLink(worker.link_round_trip_us(), worker.link_gb_per_s(), node.link);
    nodes.push_back(node);
  }
  return nodes;
}

void ApplyNode(double gb_per_s, double free_gb, planner::Node* node) {
  if (gb_per_s > 0) {
    node->bytes_per_s = gb_per_s * 1e9;
    node->measured = true;
  }
  if (free_gb > 0) node->memory_bytes = static_cast<uint64_t>(free_gb * 1e9);
}

void ApplyWorker(const v1::MeasuredWorker& w,
                 PlanRequest* plan,
                 planner::Node* node) {
  ApplyNode(w.memory_gb_per_s(), w.memory_free_gb(), node);
  if (w.round_trip_us() > 0) node->link.round_trip_s = w.round_trip_us() * 1e-6;
  if (w.out_gb_per_s() > 0) node->link.bytes_per_s = w.out_gb_per_s() * 1e9;
  if (w.back_gb_per_s() > 0) {
    node->link.back_bytes_per_s = w.back_gb_per_s() * 1e9;
  }
  node->experts = {.call_s = w.expert_call_us() * 1e-6,
                   .bytes_per_s = w.expert_gb_per_s() * 1e9,
                   .row_share = w.expert_row_share()};
  plan->measured.push_back(absl::StrCat(w.name(),
                                        ": round trip ",
                                        Fixed(w.round_trip_us(), 0),
                                        " us, ",
                                        Fixed(w.out_gb_per_s(), 3),
                                        " GB/s out, ",
                                        Fixed(w.back_gb_per_s(), 3),
                                        " back; memory ",
                                        Fixed(w.memory_gb_per_s(), 1),
                                        " GB/s, experts ",
                                        Fixed(w.expert_gb_per_s(), 1),
                                        "; ",
                                        Fixed(w.memory_free_gb(), 1),
                                        " GB free"));
}

void ApplyHome(const v1::Links& links,
               const std::string& model_sha256,
               PlanRequest* plan) {
  const v1::MeasuredCoordinator& home = links.coordinator();
  Request& r = plan->request;
  ApplyNode(home.memory_gb_per_s(), home.memory_free_gb(), &r.nodes[0]);
  r.home.all_out_bytes_per_s = home.all_out_gb_per_s() * 1e9;
  r.home.all_back_bytes_per_s = home.all_back_gb_per_s() * 1e9;
  std::string line = absl::StrCat("coordinator: memory ",
                                  Fixed(home.memory_gb_per_s(), 1),
                                  " GB/s, all workers at once ",
                                  Fixed(home.all_out_gb_per_s(), 3),
                                  " GB/s out, ",
                                  Fixed(home.all_back_gb_per_s(), 3),
                                  " back");
  // A step is of one model; rates are of the machine.
  const bool same =
      !model_sha256.empty() && links.model_sha256() == model_sha256;
  for (const v1::MeasuredStep& step : home.steps()) {
    if (!same) break;
    r.home.steps.push_back({.sequences = step.sequences(),
                            .seconds = step.step_us() * 1e-6,
                            .overlap = step.overlap_us() * 1e-6,
                            .fan_out = step.fan_out_us() * 1e-6});
    absl::StrAppend(&line,
                    "; step of ",
                    step.sequences(),
                    " without experts ",
                    Fixed(step.step_us(), 0),
                    " us");
  }
  if (!same && home.steps_size() > 0) {
    line += "; its steps are of another model and not used";
  }
  plan->measured.insert(plan->measured.begin(), line);
}

absl::Status CheckContext(Request* r) {
  const int32_t context = absl::GetFlag(FLAGS_context);
  r->context = context > 0 ? context : kContextDefault;
  if (context <= 0) {
    r->context = std::min(r->context, r->shape.max_position_embeddings);
  }
  if (r->context <= r->shape.max_position_embeddings) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--context ",
                   r->context,
                   ": the model has ",
                   r->shape.max_position_embeddings));
}

// What `conclave serve` would do with this file. `checkpoint`: null where shape
// or format is another.
absl::Status UsePlacement(const v1::ClusterConfig& config,
                          const checkpoint::Checkpoint* checkpoint,
                          PlanRequest* plan) {
  const Request& r = plan->request;
  if (config.workers_size() == 0) return absl::OkStatus();
  if (checkpoint != nullptr) {
    plan->caches = CachesOf(CachesFor(config.limits(), r.shape), r.shape);
    auto placing = DecidePlacement(config, *checkpoint, *plan->caches);
    if (absl::IsResourceExhausted(placing.status())) {
      plan->refusal = std::string(placing.status().message());
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(placing.status());
    plan->placement = std::move(placing->placement);
    plan->how = placing->how;
    return absl::OkStatus();
  }
  // The plan itself is what serve would do.
  if (UsesSolver(config)) return absl::OkStatus();
  ExpertShape shape = r.shape.expert_shape();
  shape.column_multiple = planner::ColumnMultiple(r.shape, r.format);
  ASSIGN_OR_RETURN(plan->placement, cluster::MakePlacement(config, shape));
  plan->how = "by the file";
  return absl::OkStatus();
}

// Null: the model is not as a checkpoint has it.
absl::StatusOr<std::unique_ptr<checkpoint::Checkpoint>> FormatAndShape(
    const v1::ClusterConfig& config, Request* r) {
  const std::string shape = absl::GetFlag(FLAGS_shape);
  std::string format = absl::GetFlag(FLAGS_format);
  if (shape.empty()) {
    ASSIGN_OR_RETURN(auto checkpoint,
                     checkpoint::Checkpoint::Open(config.model()));
    RETURN_IF_ERROR(DescribeModel(*checkpoint, r));
    if (format.empty()) return checkpoint;
    r->held.reset();  // as if it were in the other format
  } else {
    ASSIGN_OR_RETURN(r->shape, planner::ShapeOf(shape));
  }
  if (format.empty()) {
    return absl::InvalidArgumentError(
        "--shape needs --format, e.g. --format mlx4");
  }
  ASSIGN_OR_RETURN(r->format, planner::ParseFormat(format));
  return std::unique_ptr<checkpoint::Checkpoint>();
}

}  // namespace

absl::Status DescribeModel(const checkpoint::Checkpoint& checkpoint,
                           planner::Request* request) {
  request->shape = checkpoint.config();
  request->format = planner::FormatOf(request->shape.quantisation);
  ASSIGN_OR_RETURN(request->held, planner::HeldOf(checkpoint));
  return absl::OkStatus();
}

absl::Status UseNodes(const v1::ClusterConfig& config,
                      const std::string& file,
                      PlanRequest* plan) {
  Request& r = plan->request;
  v1::Links links;
  if (!file.empty()) {
    ASSIGN_OR_RETURN(links, config::LoadLinks(file));
  }
  ASSIGN_OR_RETURN(r.nodes, NodesOf(config, links));
  r.row_element_bytes = config.exchange().rows() == "bf16" ? 2 : 4;
  r.reply_element_bytes = config.exchange().replies() == "bf16" ? 2 : 4;
  if (!file.empty()) ApplyLinks(links, file, r.shape.config_sha256, plan);
  return absl::OkStatus();
}

void ApplyLinks(const v1::Links& links,
                const std::string& file,
                const std::string& model_sha256,
                PlanRequest* plan) {
  std::vector<planner::Node>& nodes = plan->request.nodes;
  for (size_t i = 1; i < nodes.size(); ++i) {
    const auto* worker = config::FindMeasured(links, nodes[i].name);
    if (worker != nullptr) {
      ApplyWorker(*worker, plan, &nodes[i]);
    } else {
      plan->measured.push_back(absl::StrCat(
          nodes[i].name, ": not in ", file, ", as stated in the cluster file"));
    }
  }
  ApplyHome(links, model_sha256, plan);
}

absl::StatusOr<PlanRequest> PlanRequestFromFlags() {
  PlanRequest plan;
  Request& r = plan.request;
  const bool cluster = absl::GetFlag(FLAGS_nodes).empty();
  v1::ClusterConfig config;
  if (absl::GetFlag(FLAGS_shape).empty() || cluster) {
    if (absl::GetFlag(FLAGS_config).empty() &&
        absl::GetFlag(FLAGS_model).empty()) {
      return absl::InvalidArgumentError(
          "give --shape and --nodes, or --config FILE (see --help)");
    }
    ASSIGN_OR_RETURN(config, ConfigFromFlags());
  }
  ASSIGN_OR_RETURN(const auto checkpoint, FormatAndShape(config, &r));
  if (cluster) {
    const std::string links = absl::GetFlag(FLAGS_links);
    RETURN_IF_ERROR(
        UseNodes(config, links.empty() ? config.links() : links, &plan));
    // By what the file itself says: that is what serve reads.
    RETURN_IF_ERROR(UsePlacement(config, checkpoint.get(), &plan));
  } else if (!absl::GetFlag(FLAGS_links).empty()) {
    return absl::InvalidArgumentError(
        "--links goes with --config FILE, whose workers it measured");
  } else {
    ASSIGN_OR_RETURN(r.nodes, planner::ParseNodes(absl::GetFlag(FLAGS_nodes)));
  }
  for (planner::Node& node : r.nodes) {
    ApplyLink(
        absl::GetFlag(FLAGS_link_us), absl::GetFlag(FLAGS_link_gbs), node.link);
  }
  ASSIGN_OR_RETURN(r.kv_element_bytes,
                   ElementBytes("--kv-dtype", KvDtypeFromFlags()));
  ASSIGN_OR_RETURN(r.state_element_bytes,
                   ElementBytes("--gdn-state", GdnStateFromFlags()));
  RETURN_IF_ERROR(CheckContext(&r));
  return plan;
}

}  // namespace conclave::cli
