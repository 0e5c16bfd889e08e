// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/doctor_measure.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/checkpoint.h"
#include "common/config/cluster_config.h"
#include "common/memory.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "common/transport/grpc_transport.h"
#include "common/version.h"
#include "coordinator/cli/http_client.h"
#include "coordinator/cli/measured_steps.h"
#include "coordinator/cli/placing.h"
#include "coordinator/cli/table.h"
#include "coordinator/cluster/link_probe.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/planner/plan.h"

namespace conclave::cli {
namespace {

using cluster::LinkProbe;
using cluster::LinkSpeed;
using transport::GrpcTransport;

constexpr int32_t kContext = 16384;  // of the memory check
// Until every worker has filled its buffers and read memory.
constexpr double kBeginAfter_s = 2;
constexpr absl::Duration kOpenInterval = absl::Milliseconds(1);

class Examination {
 public:
  explicit Examination(const DoctorOptions& options)
      : o_(options), config_(options.config) {}

  absl::StatusOr<Findings> Run() {
    ASSIGN_OR_RETURN(checkup_.keys, transport::ReadTls(config_.tls()));
    checkup_.deadline = absl::Seconds(config_.deadlines().connect_s());
    checkup_.clock = o_.clock;
    found_.version = std::string(Version());
    found_.tls = checkup_.keys.enabled();
    CheckHome();
    CheckWorkers();
    OpenModel();
    MeasureLinks();
    MeasureWorkers();
    MeasureHome();
    return std::move(found_);
  }

 private:
  void CheckHome();
  void CheckWorkers();
  void OpenModel();
  void MeasureLinks();
  void MeasureWorkers();
  void MeasureHome();
  absl::Status OpenLink(size_t index);
  absl::Status Needs();
  double WireSeconds(int32_t rows) const;
  absl::Status MeasureSteps(ThreadPool* pool);
  int32_t RowBytes(const std::string& dtype) const {
    return shape_.hidden_size * (dtype == "bf16" ? 2 : 4);
  }

  const DoctorOptions& o_;
  const v1::ClusterConfig& config_;
  cluster::CheckupOptions checkup_;
  Findings found_;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;  // null: no model
  checkpoint::ModelConfig shape_;
  int32_t width_ = 0;  // of the slices that workers hold
  std::unique_ptr<GrpcTransport> transport_;
  std::unique_ptr<LinkProbe> probe_;
  std::vector<WorkerId> linked_;  // whose links were measured
};

void Examination::CheckHome() {
  found_.listen = config_.coordinator().listen();
  found_.bind = config::CheckHttpBind(config_);
  found_.port = cluster::CanListen(found_.listen);
  if (absl::IsUnavailable(found_.port) && !config_.coordinator().https()) {
    // A server of ours may be at work there.
    const auto health = Call({.url = absl::StrCat("http://", found_.listen),
                              .path = "/health",
                              .method = "GET",
                              .body = "",
                              .api_key = "",
                              .idle_timeout = checkup_.deadline,
                              .stop = nullptr},
                             nullptr);
    if (health.ok() && (health->status == 200 || health->status == 503)) {
      found_.port = absl::OkStatus();
    }
  } else if (absl::IsUnavailable(found_.port)) {
    found_.port = absl::OkStatus();  // this client speaks no https
  }
  const MemoryState memory = MemoryNow();
  found_.coordinator.set_memory_free_gb(static_cast<double>(memory.free_bytes) *
                                        1e-9);
  found_.coordinator.set_memory_total_gb(
      static_cast<double>(memory.total_bytes) * 1e-9);
}

void Examination::CheckWorkers() {
  if (config_.workers_size() > 0) {
    o_.say(absl::StrCat("reaching ", config_.workers_size(), " workers"));
  }
  std::vector<std::thread> threads;
  for (const v1::Worker& worker : config_.workers()) {
    found_.workers.emplace_back().worker = worker;
  }
  for (WorkerFindings& f : found_.workers) {
    threads.emplace_back(
        [this, &f] { f.checkup = cluster::CheckWorker(f.worker, checkup_); });
  }
  for (std::thread& thread : threads) thread.join();
  for (WorkerFindings& f : found_.workers) {
    f.bind = config::CheckWorkerBind(config_, f.worker);
    f.figures.set_name(f.worker.name());
    f.figures.set_address(f.worker.address());
    if (!f.checkup.ok()) continue;
    const cluster::Checkup& c = f.checkup;
    f.figures.set_memory_free_gb(
        static_cast<double>(c.memory_free_bytes + c.resident_bytes) * 1e-9);
    f.figures.set_memory_total_gb(static_cast<double>(c.memory_total_bytes) *
                                  1e-9);
  }
}

// What each node would hold, by the file's placement.
absl::Status Examination::Needs() {
  planner::Request request;
  request.shape = shape_;
  request.format = planner::FormatOf(shape_.quantisation);
  request.context = std::min(kContext, shape_.max_position_embeddings);
  planner::Node node;
  node.bytes_per_s = node.flops = 1;  // times are not asked for
  request.nodes.assign(found_.workers.size() + 1, node);
  Placement placement;
  // The solver deals out what fits: only the coordinator's own part is fixed.
  if (!UsesSolver(config_)) {
    ASSIGN_OR_RETURN(placement,
                     cluster::MakePlacement(config_, shape_.expert_shape()));
  }
  ASSIGN_OR_RETURN(const planner::Plan plan,
                   planner::PlanOf(request, placement));
  found_.needs_bytes = plan.nodes[0].Used();
  for (size_t i = 0; i < found_.workers.size(); ++i) {
    found_.workers[i].needs_bytes = plan.nodes[i + 1].Used();
  }
  width_ = shape_.moe_intermediate_size;
  for (size_t i = 0; i < placement.shards.size(); ++i) {
    if (placement.holder[i] == kCoordinator) continue;
    for (const Slice& slice : placement.shards[i].slices) {
      width_ = std::min(width_, slice.width());
    }
  }
  return absl::OkStatus();
}

void Examination::OpenModel() {
  if (config_.model().empty()) return;
  auto opened = checkpoint::Checkpoint::Open(config_.model());
  found_.model = opened.status();
  if (!opened.ok()) return;
  checkpoint_ = *std::move(opened);
  shape_ = checkpoint_->config();
  found_.model_sha256 = shape_.config_sha256;
  found_.model = Needs();
}

absl::Status Examination::OpenLink(size_t index) {
  const v1::Worker& worker = found_.workers[index].worker;
  const auto id = static_cast<WorkerId>(index);
  using transport::Dial, transport::Traffic;
  transport_->Connect(
      id,
      {.name = absl::StrCat(worker.name(), " (", worker.address(), ")"),
       .exchange = Dial(worker.address(), checkup_.keys, Traffic::kExchange),
       .bulk = Dial(worker.address(), checkup_.keys, Traffic::kBulk)});
  const absl::Time deadline = o_.clock->Now() + checkup_.deadline;
  while (true) {
    transport_->Pump();
    const absl::Status status = transport_->LinkStatus(id);
    if (status.ok() || transport_->IsBroken(id)) return status;
    if (o_.clock->Now() >= deadline) return status;
    o_.clock->SleepUntil(o_.clock->Now() + kOpenInterval);
  }
}

// What the links, measured at rest, say of an exchange of so many rows with
// every worker.
double Examination::WireSeconds(int32_t rows) const {
  const double out = rows * RowBytes(config_.exchange().rows()) * 1e-9;
  const double back = rows * RowBytes(config_.exchange().replies()) * 1e-9;
  double round_trip = 0, slowest_out = 0, slowest_back = 0;
  for (const WorkerFindings& f : found_.workers) {
    if (f.figures.round_trip_us() == 0) continue;
    round_trip = std::max(round_trip, f.figures.round_trip_us() * 1e-6);
    slowest_out = std::max(slowest_out, out / f.figures.out_gb_per_s());
    slowest_back = std::max(slowest_back, back / f.figures.back_gb_per_s());
  }
  const v1::MeasuredCoordinator& home = found_.coordinator;
  const auto workers = static_cast<double>(linked_.size());
  return round_trip +
         std::max(slowest_out, workers * out / home.all_out_gb_per_s()) +
         std::max(slowest_back, workers * back / home.all_back_gb_per_s());
}

void Examination::MeasureLinks() {
  transport_ = std::make_unique<GrpcTransport>(GrpcTransport::Options{
      .spin_us = config::SpinUs(
          config_, config_.coordinator().spin_us(), AvailableCores()),
      .clock = o_.clock});
  const absl::Duration frame = std::max(
      checkup_.deadline, absl::Seconds(config_.deadlines().exchange_s()));
  probe_ = std::make_unique<LinkProbe>(transport_.get(), o_.clock, frame);
  for (size_t i = 0; i < found_.workers.size(); ++i) {
    WorkerFindings& f = found_.workers[i];
    if (!f.checkup.ok()) continue;
    o_.say(absl::StrCat("measuring the link to ", f.worker.name()));
    const auto id = static_cast<WorkerId>(i);
    f.link = OpenLink(i);
    if (!f.link.ok()) continue;
    const auto speed = probe_->Measure(id);
    f.link = speed.status();
    if (!speed.ok()) {
      transport_->Disconnect(id, speed.status());
      continue;
    }
    f.figures.set_round_trip_us(speed->round_trip_s * 1e6);
    f.figures.set_out_gb_per_s(speed->out_bytes_per_s * 1e-9);
    f.figures.set_back_gb_per_s(speed->back_bytes_per_s * 1e-9);
    linked_.push_back(id);
  }
  if (linked_.empty()) return;
  o_.say("measuring all links at once");
  const auto all = probe_->MeasureAll(linked_);
  if (!all.ok()) {
    found_.steps = all.status();
    return;
  }
  v1::MeasuredCoordinator& home = found_.coordinator;
  home.set_all_out_gb_per_s(all->out_bytes_per_s * 1e-9);
  home.set_all_back_gb_per_s(all->back_bytes_per_s * 1e-9);
}

void Examination::MeasureWorkers() {
  std::vector<v1::Worker> workers;
  std::vector<WorkerFindings*> findings;
  for (WorkerFindings& f : found_.workers) {
    if (!f.checkup.ok()) continue;
    workers.push_back(f.worker);
    findings.push_back(&f);
  }
  if (workers.empty()) return;
  o_.say("measuring memory and experts of all workers at once");
  v1::MeasureRequest request;
  if (width_ > 0) {
    request.set_hidden(shape_.hidden_size);
    request.set_width(width_);
    request.set_top_k(shape_.num_experts_per_tok);
    request.set_begin_after_s(kBeginAfter_s);
    request.set_weights(
        std::string(planner::Name(planner::FormatOf(shape_.quantisation))));
    request.set_activations(config_.coordinator().activations());
  }
  const auto replies = cluster::MeasureWorkers(workers, request, checkup_);
  for (size_t i = 0; i < replies.size(); ++i) {
    findings[i]->measured = replies[i].status();
    if (!replies[i].ok()) continue;
    const v1::MeasureReply& reply = *replies[i];
    v1::MeasuredWorker& figures = findings[i]->figures;
    figures.set_memory_gb_per_s(reply.memory_bytes_per_s() * 1e-9);
    figures.set_expert_call_us(reply.expert_call_s() * 1e6);
    figures.set_expert_gb_per_s(reply.expert_bytes_per_s() * 1e-9);
    figures.set_expert_row_share(reply.expert_row_share());
  }
}

void Examination::MeasureHome() {
  o_.say("measuring this machine's memory");
  int32_t threads = config_.coordinator().threads();
  if (threads <= 0) threads = AvailableCores();
  const int32_t cores = AvailableCores();
  ThreadPool pool(
      threads,
      threads > cores
          ? 0
          : config::SpinUs(config_, config_.coordinator().spin_us(), cores));
  found_.coordinator.set_memory_gb_per_s(MemoryReadRate(&pool, o_.clock) *
                                         1e-9);
  if (checkpoint_ == nullptr || o_.quick) return;
  const double needs = static_cast<double>(found_.needs_bytes) * 1e-9;
  if (needs > found_.coordinator.memory_free_gb()) return;  // a verdict
  const absl::Status steps = MeasureSteps(&pool);
  if (found_.steps.ok()) found_.steps = steps;
}

absl::Status Examination::MeasureSteps(ThreadPool* pool) {
  o_.say("measuring decode steps without experts");
  const bool probes = found_.coordinator.all_back_gb_per_s() > 0;
  StepOptions options;
  ASSIGN_OR_RETURN(
      options.activations,
      kernels::ParseActivations(config_.coordinator().activations()));
  options.sequences = {1, 8};
  options.pool = pool;
  options.clock = o_.clock;
  options.probe = probes ? probe_.get() : nullptr;
  options.workers = linked_;
  options.row_bytes = RowBytes(config_.exchange().rows());
  options.reply_bytes = RowBytes(config_.exchange().replies());
  ASSIGN_OR_RETURN(const auto steps, cli::MeasureSteps(*checkpoint_, options));
  const double layers = shape_.num_hidden_layers;
  for (const StepFigures& figures : steps) {
    v1::MeasuredStep& step = *found_.coordinator.add_steps();
    step.set_sequences(figures.sequences);
    step.set_step_us(figures.alone_us);
    step.set_overlap_us(std::min(figures.between_us, figures.alone_us));
    if (!probes) continue;
    // What overlaps was hidden behind the exchange.
    const double exchange_us =
        (figures.probed_us - figures.alone_us + figures.between_us) / layers;
    const double more = exchange_us - WireSeconds(figures.sequences) * 1e6;
    step.set_fan_out_us(
        std::max(0.0, more / static_cast<double>(linked_.size())));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Findings> Examine(const DoctorOptions& options) {
  return Examination(options).Run();
}

v1::Links LinksOf(const Findings& findings) {
  v1::Links links;
  links.set_measured_by(absl::StrCat("conclave ", findings.version));
  links.set_model_sha256(findings.model_sha256);
  *links.mutable_coordinator() = findings.coordinator;
  for (const WorkerFindings& f : findings.workers) {
    if (f.figures.round_trip_us() > 0) *links.add_workers() = f.figures;
  }
  return links;
}

}  // namespace conclave::cli
