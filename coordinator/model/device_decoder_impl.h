// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/device_memory.h"
#include "coordinator/model/device_step_arrays.h"
#include "coordinator/model/micro_batches.h"
#include "coordinator/model/routed_elsewhere.h"
#include "kernels/device_rows.h"

namespace conclave::model {

class DeviceSampler;

// device_decoder.cc has the pass, device_decoder_run.cc the steps,
// device_decoder_group.cc where ranks of a group meet,
// device_decoder_linked.cc experts behind a link,
// device_decoder_measure.cc what benchmarks ask, device_sampler.cc steps that
// choose tokens.
struct DeviceDecoder::Impl {
  using Sizes = DeviceStepArrays::Sizes;
  ~Impl();

  // A step on its way through the layers, or a micro-batch of it.
  struct Slice {
    int32_t number = 0;
    int32_t row = 0;  // its first, of the step's arrays
    kernels::DeviceStep step;
    kernels::DeviceEntries entries;
    kernels::DeviceAddend moe;  // of the layer that was begun last
  };

  explicit Impl(std::shared_ptr<const DeviceWeights> held)
      : held(std::move(held)), weights(*this->held) {}

  bool Launches(Block block) const { return (blocks & block) != 0; }
  absl::StatusOr<kernels::DeviceGraph> Record(const Sizes& sizes);
  // Sizes of a step of one row per sequence, and of its recording.
  Sizes SizesOf(const kernels::StepBatch& batch) const;
  // Copies the numbers of a step and cuts it into slices: one, or two where
  // that is allowed and pays.
  absl::Status Upload(const Sizes& sizes,
                      const kernels::StepBatch& batch,
                      std::span<const int32_t> tokens,
                      std::span<const int32_t> wanted,
                      int32_t spare_block,
                      bool may_cut);
  // What steps with experts elsewhere need, of at most `bounds`.
  absl::Status LookElsewhere(const DeviceStepArrays::Bounds& bounds);
  absl::Status Layers(Probe* probe);
  absl::Status BeginLayer(size_t index, Slice* slice, Probe* probe);
  // m.x += addend, and in a group the other ranks' in sum `number` of the step
  // (-1: there is none); m.u = its norm, m.low what rounding that lost, if
  // wanted.
  absl::Status Norm(const Slice& slice,
                    const kernels::DeviceAddend& addend,
                    int32_t number,
                    const float* w,
                    bool with_low);
  // In a group, what each rank has of m.logits goes to rank 0; `again`: as
  // before, with no sum between.
  absl::Status Gather(int32_t rows, bool again);
  // Waits for the step in a group; alone, whoever reads its results does.
  absl::Status Joined();
  absl::Status Follow(const kernels::StepBatch& batch,
                      std::span<const int32_t> tokens,
                      std::span<const int32_t> wanted,
                      bool recorded);
  // *sum is what the mixer adds to m.x.
  absl::Status Mix(size_t index,
                   const Slice& slice,
                   kernels::DeviceAddend* sum);
  // Routes m.u and computes its experts, or begins to; slice->moe is what they
  // add to m.x once they have ended.
  absl::Status BeginExperts(size_t index, Slice* slice);
  absl::Status EndExperts(size_t index, Slice* slice);
  absl::Status Stacks(size_t index,
                      const Slice& slice,
                      const kernels::DeviceEntries& entries);
  // Before a step whose experts may be behind a link; not while recording.
  absl::Status BeginLinked(int32_t rows, bool record);
  absl::Status LinkedLayer(size_t index, Slice* slice);
  // A step over the link failed: all recordings go, then the link.
  void DropLinked();
  absl::Status Product(const DeviceLinears& linears,
                       const kernels::DeviceRows& x,
                       const void* low,
                       int32_t rows,
                       float* out,
                       int32_t* planes = nullptr);
  // Layers and head of a step of one row per sequence.
  absl::Status PassToLogits(const Sizes& sizes);
  absl::Status Pass(const Sizes& sizes);
  // Logits of the wanted rows of a step that was launched, kept where tokens
  // are chosen; waits for the step.
  absl::Status Head(const Sizes& sizes);
  // m.logits = the head's product with rows of x; all of them on rank 0.
  absl::Status Logits(const kernels::DeviceRows& x, int32_t rows, bool again);
  absl::Status Recorded(const kernels::StepBatch& batch,
                        std::span<const int32_t> tokens,
                        Sizes* sizes);
  absl::Status Show(Probe* probe, int32_t layer, int32_t rows);
  absl::Status ShowRouting(Probe* probe,
                           int32_t layer,
                           const kernels::DeviceEntries& entries);
  // Rows of m.u from `row` on.
  absl::Status DownloadRows(int32_t row, int32_t rows, std::vector<float>* out);
  void NotePositions(const kernels::StepBatch& batch);
  // Whether the step is one that a recorded step can be.
  absl::Status CheckOneRowEach(const kernels::StepBatch& batch,
                               std::span<const int32_t> tokens) const;
  absl::Status CheckRoom(const kernels::StepBatch& batch) const;
  absl::StatusOr<StepOutput> Run(const kernels::StepBatch& batch,
                                 std::span<const int32_t> tokens,
                                 std::span<const int32_t> logit_rows,
                                 Probe* probe);
  // The status with the device's name; remembers what cannot be mended.
  absl::Status Told(const absl::Status& status);

  // The queue outlives what was allocated on it.
  std::unique_ptr<kernels::DeviceQueue> queue;
  Options options;
  std::shared_ptr<const DeviceWeights> held;  // by all lanes
  const DeviceWeights& weights;
  DeviceMemory m;
  DeviceStepArrays arrays;
  std::vector<Slice> slices;  // of the step
  // With options.experts, each for a micro-batch; arrays only where there are
  // two.
  std::vector<RoutedElsewhere> elsewhere;
  std::vector<DeviceStepArrays> slice_arrays;
  std::optional<MicroBatchSteps> micro_batches;
  std::map<Sizes, kernels::DeviceGraph> graphs;
  std::set<DeviceSampler*> samplers;  // which have recordings, too
  int64_t recorded_in = 0;            // generation of the group
  uint32_t blocks = kAll;             // that are launched
  int32_t mixer_planes = 1;           // of m.y
  absl::Status lost;                  // why no further step can run

  // Position after the row that a slot's state was written by, [slots]; of all
  // lanes.
  std::shared_ptr<std::vector<int32_t>> next_position;
  std::vector<float> logits, hidden;
  std::vector<uint16_t> rounded;
  std::vector<float> state;
};

}  // namespace conclave::model
