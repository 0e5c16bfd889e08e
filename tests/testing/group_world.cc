// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/group_world.h"

#include <thread>

#include "tests/testing/seeded.h"

namespace conclave::testing {
namespace {

constexpr float kEps = 1e-6f;

}  // namespace

std::string WhyNot(const GroupCase& group) {
  if (!group.gpus) {
    return kernels::DeviceQueue::Create(kernels::kHostDevice).ok()
               ? ""
               : "built with CUDA: the plain twins are not linked";
  }
  const auto devices = kernels::ListCudaDevices();
  if (!devices.ok()) return std::string(devices.status().message());
  if (std::ssize(*devices) >= group.ranks) return "";
  return "this machine has " + std::to_string(devices->size()) + " GPUs, not " +
         std::to_string(group.ranks);
}

GroupWorld::GroupWorld(const GroupCase& group,
                       kernels::DeviceGroup::Options options)
    : cols_(options.cols) {
  options.exchange = group.exchange;
  std::vector<kernels::DeviceQueue*> queues;
  for (int32_t rank = 0; rank < group.ranks; ++rank) {
    auto queue = kernels::DeviceQueue::Create(group.device(rank));
    EXPECT_TRUE(queue.ok()) << queue.status();
    if (!queue.ok()) return;
    queues.push_back(queue->get());
    Member& member = members_.emplace_back();
    member.queue = *std::move(queue);
    for (kernels::DeviceBuffer* to :
         {&member.x, &member.u, &member.part, &member.w}) {
      *to = *member.queue->Allocate(sizeof(float) * options.rows_max * cols_,
                                    "a test's rows");
    }
  }
  auto made = kernels::DeviceGroup::Create(queues, options);
  EXPECT_TRUE(made.ok()) << made.status();
  if (made.ok()) group_ = *std::move(made);
}

void GroupWorld::Fill(uint32_t seed, int32_t rows) {
  rows_ = rows;
  Seeded random(seed);
  x_ = random.Floats(rows * cols_);
  w_ = random.Floats(cols_);
  for (Member& member : members_) {
    member.values = random.Floats(rows * cols_);
    Up(member, x_, member.x);
    Up(member, w_, member.w);
    Up(member, member.values, member.part);
  }
}

absl::Status GroupWorld::Load(int32_t rank,
                              const std::vector<float>& x,
                              const std::vector<float>& part) {
  Member& m = members_[rank];
  const absl::Status status =
      m.queue->Upload(x.data(), x.size() * sizeof(float), m.x.as<void>());
  if (!status.ok()) return status;
  return m.queue->Upload(
      part.data(), part.size() * sizeof(float), m.part.as<void>());
}

void GroupWorld::SetPart(int32_t rank, size_t at, float value) {
  members_[rank].values[at] = value;
  Up(members_[rank], members_[rank].values, members_[rank].part);
}

GroupWorld::Rows GroupWorld::Expected(int32_t only) const {
  Rows out{.x = x_, .u = {}};
  for (const int32_t from : {only, -1}) {
    for (size_t i = 0; i < out.x.size(); ++i) {
      float sum = 0;
      for (int32_t rank = 0; rank < ranks(); ++rank) {
        if (from < 0 || from == rank) sum += members_[rank].values[i];
      }
      out.x[i] += sum;
    }
  }
  for (int32_t r = 0; r < rows_; ++r) {
    float sum = 0;
    const float* line = &out.x[size_t(r) * cols_];
    for (int32_t c = 0; c < cols_; ++c) sum += line[c] * line[c];
    const float factor = 1.0f / __builtin_sqrtf(sum / cols_ + kEps);
    for (int32_t c = 0; c < cols_; ++c) {
      out.u.push_back(line[c] * factor * w_[c]);
    }
  }
  return out;
}

absl::Status GroupWorld::Queue(int32_t rank, int32_t only, int32_t sums) {
  Member& m = members_[rank];
  for (int32_t number = 0; number < sums; ++number) {
    const int32_t from = number == 0 ? only : -1;
    kernels::GroupSum sum{.number = number,
                          .only = from,
                          .rows = rows_,
                          .w = m.w.as<float>(),
                          .eps = kEps,
                          .x = m.x.as<float>(),
                          .u = {.data = m.u.as<void>(), .bf16 = false}};
    if (from < 0 || from == rank) sum.part.dense = m.part.as<float>();
    const absl::Status status = group_->AddNorm(rank, sum);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void GroupWorld::Finish(int32_t rank) {
  const auto end = group_->Finish(rank);
  EXPECT_TRUE(end.ok()) << end.status();
  if (end.ok()) members_[rank].end = *end;
}

void GroupWorld::Step(int32_t rank, int32_t only) {
  const absl::Status status = Queue(rank, only);
  EXPECT_TRUE(status.ok()) << status;
  Finish(rank);
}

void GroupWorld::EachRank(const std::function<void(int32_t)>& what) {
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < ranks(); ++rank) {
    threads.emplace_back([&what, rank] { what(rank); });
  }
  for (std::thread& thread : threads) thread.join();
}

void GroupWorld::Up(Member& member,
                    const std::vector<float>& from,
                    const kernels::DeviceBuffer& to) {
  const absl::Status status = member.queue->Upload(
      from.data(), from.size() * sizeof(float), to.as<void>());
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(member.queue->Wait().ok());
}

std::vector<float> GroupWorld::Down(int32_t rank,
                                    const kernels::DeviceBuffer& from) {
  std::vector<float> out(static_cast<size_t>(rows_) * cols_);
  const absl::Status status = members_[rank].queue->Download(
      from.as<void>(), out.size() * sizeof(float), out.data());
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

}  // namespace conclave::testing
