// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/deployment.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config/cluster_config.h"
#include "common/delivery/slice_cache.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "coordinator/cli/gpu_plan.h"
#include "coordinator/cli/group_flags.h"
#include "coordinator/cli/linked.h"
#include "coordinator/cli/progress.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/delivery/supply.h"
#include "coordinator/engine.h"
#include "coordinator/engine_metrics.h"
#include "coordinator/experts/local_experts.h"
#include "coordinator/experts/local_shards.h"
#include "coordinator/experts/remote_experts.h"

namespace conclave::cli {

struct Deployment::Impl {
  v1::ClusterConfig config;
  kernels::Backend backend = kernels::Backend::kCpu;
  GpuPlan gpus;  // without names: none
  kernels::Activations activations = kernels::Activations::kF32;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  Placement placement;
  std::string how;  // it came to be
  // Layers whose routed experts are on the GPU; empty: all of them.
  std::vector<bool> routed_here;
  model::StateSizes caches;  // zeros without an engine
  std::unique_ptr<Progress> progress;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<experts::LocalShards> shards;  // the coordinator's own
  std::unique_ptr<delivery::Supply> supply;      // null without workers
  std::unique_ptr<cluster::Cluster> cluster;     // likewise
  std::unique_ptr<experts::Experts> experts;
  std::unique_ptr<experts::LinkedExperts> linked;  // instead of experts
  Clock* clock = nullptr;
  Metrics* metrics = nullptr;

  absl::Status LoadOwn(std::optional<WorkerId> holder);
  absl::Status PlanGpu(const Options& options);
  absl::Status PlanHost(const Options& options);
  // Decides which experts the GPU holds, and which this machine's processor.
  absl::Status PlaceBesideGpu(const Options& options, const CacheBytes& least);
  void MakePool(const Options& options);
  // Of its own shards: beside a GPU the processor computes them.
  kernels::Backend ExpertBackend() const {
    return gpus.gpus.empty() ? backend : kernels::Backend::kCpu;
  }
  // Rows that a GPU rounded to bf16 travel so: nothing is lost.
  DType RowsSent() const;
  absl::Status MakeLocal(const Options& options);
  absl::Status MakeRemote(const Options& options);
  absl::Status MakeLinked(const Options& options);
};

namespace {

// Spinning threads only where every one of them has a core.
int32_t SpinOf(const v1::ClusterConfig& config, int32_t threads) {
  const int32_t cores = AvailableCores();
  if (threads > cores) return 0;
  return config::SpinUs(config, config.coordinator().spin_us(), cores);
}

DType RowDtype(const std::string& word) {
  return word == "bf16" ? DType::kBF16 : DType::kF32;
}

}  // namespace

absl::Status Deployment::Impl::LoadOwn(std::optional<WorkerId> holder) {
  const Placement own = WithoutLayers(placement, routed_here);
  const auto on_load = [this](uint64_t done, uint64_t total) {
    progress->Update("coordinator", done, total);
  };
  ASSIGN_OR_RETURN(
      shards, experts::LocalShards::Load(*checkpoint, own, holder, on_load));
  return absl::OkStatus();
}

absl::Status Deployment::Impl::MakeLocal(const Options& options) {
  RETURN_IF_ERROR(LoadOwn(std::nullopt));
  ASSIGN_OR_RETURN(
      experts,
      experts::LocalExperts::Create(placement,
                                    checkpoint->config().expert_shape(),
                                    shards.get(),
                                    options.backend,
                                    pool.get(),
                                    activations));
  return absl::OkStatus();
}

absl::Status Deployment::Impl::MakeRemote(const Options& options) {
  supply = std::make_unique<delivery::Supply>(
      checkpoint.get(),
      delivery::Supply::Options{
          .cache = delivery::CacheFolder(config.delivery().cache()),
          .streams = config.delivery().streams(),
          .clock = options.clock});
  ASSIGN_OR_RETURN(cluster,
                   cluster::Cluster::Start(
                       {.config = config,
                        .placement = placement,
                        .config_sha256 = checkpoint->config().config_sha256,
                        .supply = supply.get(),
                        .clock = options.clock,
                        .metrics = options.metrics}));
  RETURN_IF_ERROR(LoadOwn(kCoordinator));
  if (IsLinked(config)) return MakeLinked(options);
  ASSIGN_OR_RETURN(
      experts,
      experts::RemoteExperts::Create(
          {.placement = placement,
           .shape = checkpoint->config().expert_shape(),
           .local = shards.get(),
           .transport = cluster->transport(),
           .clock = options.clock,
           .metrics = options.metrics,
           .generation = cluster->generation(),
           .deadline = absl::Seconds(config.deadlines().exchange_s()),
           .row_dtype = RowsSent(),
           .reply_dtype = RowDtype(config.exchange().replies()),
           .backend = ExpertBackend(),
           .pool = pool.get(),
           .activations = activations}));
  return absl::OkStatus();
}

absl::Status Deployment::Impl::MakeLinked(const Options& options) {
  experts::LinkedOptions of = LinkedOptionsOf(config,
                                              placement,
                                              checkpoint->config(),
                                              routed_here,
                                              caches,
                                              activations);
  UseCluster(cluster.get(), &of);
  of.clock = options.clock;
  of.metrics = options.metrics;
  ASSIGN_OR_RETURN(linked, experts::LinkedExperts::Create(std::move(of)));
  return absl::OkStatus();
}

DType Deployment::Impl::RowsSent() const {
  const bool rounded =
      !gpus.gpus.empty() && activations != kernels::Activations::kF32;
  return rounded ? DType::kBF16 : RowDtype(config.exchange().rows());
}

absl::Status Deployment::Impl::PlaceBesideGpu(const Options& options,
                                              const CacheBytes& least) {
  ASSIGN_OR_RETURN(Placing placing,
                   DecidePlacement(config, *checkpoint, least));
  placement = std::move(placing.placement);
  how = std::move(placing.how);
  routed_here =
      OwnLayers(placement, checkpoint->config().expert_shape().layers);
  // The dense part passes through host memory on its way to the GPU.
  return CheckFits(
      *checkpoint, WithoutLayers(placement, routed_here), {}, options.memory());
}

void Deployment::Impl::MakePool(const Options& options) {
  int32_t threads = options.threads;
  if (threads <= 0) threads = config.coordinator().threads();
  if (threads <= 0) threads = AvailableCores();
  pool = std::make_unique<ThreadPool>(threads, SpinOf(config, threads));
}

absl::Status Deployment::Impl::PlanHost(const Options& options) {
  const checkpoint::ModelConfig& model = checkpoint->config();
  // Once, for placement, check and engine: free memory changes.
  if (options.with_engine) caches = CachesFor(config.limits(), model);
  const CacheBytes bytes = CachesOf(caches, model);
  ASSIGN_OR_RETURN(Placing placing,
                   DecidePlacement(config, *checkpoint, bytes));
  placement = std::move(placing.placement);
  how = std::move(placing.how);
  return CheckFits(*checkpoint, placement, bytes, options.memory());
}

absl::Status Deployment::Impl::PlanGpu(const Options& options) {
  const bool group = config.coordinator().gpus_size() > 1;
  if (group && config.workers_size() > 0) {
    return absl::InvalidArgumentError(
        "coordinator.gpus names several GPUs beside workers: not together "
        "yet; take the workers out of the file or name one GPU");
  }
  v1::Limits& bounds = *config.mutable_limits();
  if (bounds.step_tokens() == 0)
    bounds.set_step_tokens(limits::kStepTokensOnGpu);
  if (config.workers_size() > 0) {
    const checkpoint::ModelConfig& model = checkpoint->config();
    RETURN_IF_ERROR(
        PlaceBesideGpu(options, CachesOf(CachesFor(bounds, model, {}), model)));
  }
  uint64_t link = 0;
  if (IsLinked(config)) {
    const checkpoint::ModelConfig& model = checkpoint->config();
    ASSIGN_OR_RETURN(link,
                     experts::LinkedExperts::BytesOf(
                         LinkedOptionsOf(config,
                                         placement,
                                         model,
                                         routed_here,
                                         CachesFor(config.limits(), model, {}),
                                         activations)));
  }
  ASSIGN_OR_RETURN(gpus,
                   PlanGpus(options.gpus,
                            {.config = &config,
                             .checkpoint = checkpoint.get(),
                             .activations = activations,
                             .link_bytes = link,
                             .here = routed_here}));
  caches = gpus.caches;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Deployment>> Deployment::Create(
    const v1::ClusterConfig& config, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->clock = options.clock;
  impl->metrics = options.metrics;
  if (v1::Coordinator& c = *impl->config.mutable_coordinator();
      c.gpus_size() > 0) {
    c.set_gpu(c.gpus(0));
  }
  impl->backend = options.backend;
  RETURN_IF_ERROR(CheckLinked(config, options.backend));
  ASSIGN_OR_RETURN(
      impl->activations,
      kernels::ParseActivations(config.coordinator().activations()));
  ASSIGN_OR_RETURN(impl->checkpoint,
                   checkpoint::Checkpoint::Open(config.model()));
  impl->progress =
      std::make_unique<Progress>(options.clock, options.show_progress);
  if (options.backend == kernels::Backend::kCuda) {
    RETURN_IF_ERROR(impl->PlanGpu(options));
    if (config.workers_size() == 0) {
      return std::unique_ptr<Deployment>(new Deployment(std::move(impl)));
    }
  } else {
    RETURN_IF_ERROR(impl->PlanHost(options));
  }
  impl->MakePool(options);
  RETURN_IF_ERROR(config.workers_size() == 0 ? impl->MakeLocal(options)
                                             : impl->MakeRemote(options));
  ShowResident(options.metrics, "experts", impl->shards->bytes());
  return std::unique_ptr<Deployment>(new Deployment(std::move(impl)));
}

Deployment::Deployment(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Deployment::~Deployment() = default;

const checkpoint::Checkpoint& Deployment::checkpoint() const {
  return *impl_->checkpoint;
}
experts::Experts* Deployment::experts() { return impl_->experts.get(); }
ThreadPool* Deployment::pool() { return impl_->pool.get(); }
kernels::Activations Deployment::activations() const {
  return impl_->activations;
}
model::StateSizes Deployment::caches() const { return impl_->caches; }
const v1::Limits& Deployment::limits() const { return impl_->config.limits(); }

model::MicroBatchSettings Deployment::micro_batches() const {
  const v1::Coordinator& c = impl_->config.coordinator();
  const bool lone = c.gpus_size() > 1 && c.group_form() == "lone";
  if (impl_->config.workers_size() == 0 && !lone) return {};
  return {.count = impl_->config.exchange().micro_batches(),
          .clock = impl_->clock,
          .metrics = impl_->metrics};
}

absl::StatusOr<std::unique_ptr<model::Decoder>> Deployment::MakeDecoder() {
  const v1::Coordinator& c = impl_->config.coordinator();
  const int32_t gpu = c.gpu();
  const std::vector<int32_t> gpus(c.gpus().begin(), c.gpus().end());
  const std::string whose =
      gpus.size() > 1 ? absl::StrCat("GPUs ", absl::StrJoin(gpus, ","))
                      : absl::StrCat("GPU ", gpu);
  const auto progress = [this, whose](uint64_t done, uint64_t total) {
    impl_->progress->Update(whose, done, total);
  };
  ASSIGN_OR_RETURN(const model::GroupForm form, ParseForm(c.group_form()));
  ASSIGN_OR_RETURN(const kernels::GroupExchange exchange,
                   ParseExchange(c.group_exchange()));
  return model::Decoder::Create(
      *impl_->checkpoint,
      impl_->experts.get(),
      impl_->backend,
      impl_->pool.get(),
      impl_->caches,
      impl_->activations,
      {.gpu = gpu,
       .kv = KvDTypeOf(c),
       .gdn = GdnDTypeOf(c),
       .progress = progress,
       .gpus = gpus,
       .form = form,
       .shares = impl_->gpus.shares,
       .exchange = exchange,
       .group_deadline = absl::Seconds(impl_->config.deadlines().exchange_s()),
       .linked = impl_->linked.get(),
       .routed_here = impl_->routed_here},
      micro_batches());
}

std::string Deployment::ComputesOn() const {
  if (!impl_->gpus.gpus.empty()) return impl_->gpus.gpus;
  return absl::StrCat("SIMD ",
                      kernels::ActiveSimdTarget(),
                      ", ",
                      impl_->pool->threads(),
                      " threads");
}

absl::Status Deployment::Ready() const {
  return impl_->cluster == nullptr ? absl::OkStatus() : impl_->cluster->Ready();
}

absl::Status Deployment::WaitReady(absl::Time deadline) {
  if (impl_->cluster == nullptr) return absl::OkStatus();
  return impl_->cluster->WaitReady(
      deadline, [this](const std::vector<cluster::WorkerState>& workers) {
        for (const cluster::WorkerState& worker : workers) {
          if (worker.bytes_total == 0) continue;
          impl_->progress->Update(
              worker.name, worker.bytes_done, worker.bytes_total);
        }
      });
}

std::string Deployment::Describe() const {
  if (impl_->config.workers_size() == 0 && !impl_->gpus.gpus.empty()) {
    return absl::StrCat(
        "all experts are on ", impl_->gpus.gpus, "\n", impl_->gpus.uneven);
  }
  return absl::StrCat("experts are placed ",
                      impl_->how,
                      "\n",
                      cluster::ToString(impl_->placement, impl_->config));
}

std::vector<cluster::WorkerState> Deployment::Workers() const {
  if (impl_->cluster == nullptr) return {};
  return impl_->cluster->Workers();
}

}  // namespace conclave::cli
