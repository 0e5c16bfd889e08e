// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_exchange.h"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/buffer.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_transport.h"
#include "common/version.h"
#include "coordinator/cli/bench_group.h"
#include "coordinator/cli/bench_peers.h"
#include "coordinator/cli/group_flags.h"
#include "coordinator/cli/table.h"

ABSL_FLAG(int32_t, exchange_rounds, 2000, "round trips per frame size");

namespace conclave::cli {
namespace {

constexpr size_t kSizes[] = {64, 8 << 10, 64 << 10, 1 << 20};
// The size that the target of this project speaks of, and the target.
constexpr size_t kTargetSize = 8 << 10;
constexpr double kTargetRatio = 2.5;
// Turns of the two sides; short, so that both see the same weather.
constexpr int32_t kTurn = 50;
constexpr int32_t kRoundsMin = 100;
constexpr absl::Duration kDeadline = absl::Seconds(10);

using Samples = std::vector<double>;  // microseconds

double Quantile(Samples samples, double q) {
  std::sort(samples.begin(), samples.end());
  const auto at = static_cast<size_t>(q * static_cast<double>(samples.size()));
  return samples[std::min(at, samples.size() - 1)];
}

// A setting: so many peers of each kind, and whether all sides compute.
class Setting {
 public:
  // Forks only.
  static absl::StatusOr<Setting> Start(int peers, bool busy) {
    Setting setting;
    for (int i = 0; i < peers; ++i) {
      ASSIGN_OR_RETURN(setting.grpc_peers_.emplace_back(),
                       EchoPeer::Start(EchoPeer::Kind::kGrpc, busy));
      ASSIGN_OR_RETURN(setting.raw_peers_.emplace_back(),
                       EchoPeer::Start(EchoPeer::Kind::kSockets, busy));
    }
    setting.busy_ = busy;
    return setting;
  }

  absl::Status Connect() {
    if (busy_) work_ = std::make_unique<BusyWork>();
    transport_ = std::make_unique<transport::GrpcTransport>(
        transport::GrpcTransport::Options{.spin_us = kBenchSpinUs,
                                          .clock = RealClock()});
    using transport::Traffic;
    for (size_t i = 0; i < grpc_peers_.size(); ++i) {
      ASSIGN_OR_RETURN(raw_.emplace_back(),
                       RawConnection::Open(raw_peers_[i]->port()));
      const auto id = static_cast<WorkerId>(i);
      const std::string address =
          absl::StrCat("127.0.0.1:", grpc_peers_[i]->port());
      transport_->Connect(
          id,
          {.name = absl::StrCat("echo (", address, ")"),
           .exchange = transport::Dial(address, {}, Traffic::kExchange),
           .bulk = transport::Dial(address, {}, Traffic::kBulk)});
      const absl::Time deadline = RealClock()->Now() + kDeadline;
      while (!transport_->LinkStatus(id).ok()) {
        transport_->Pump();
        if (RealClock()->Now() > deadline) return transport_->LinkStatus(id);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Raw(size_t size, int32_t rounds, Samples* samples) {
    std::vector<std::byte> frame(size);
    const uint64_t length = size;
    std::memcpy(frame.data(), &length, sizeof(length));
    for (int32_t i = 0; i < rounds; ++i) {
      if (work_ != nullptr) work_->Run();
      const absl::Time begin = RealClock()->Now();
      bool ok = true;
      for (const auto& peer : raw_) ok = ok && peer->Write(frame);
      for (const auto& peer : raw_) ok = ok && peer->Read(frame);
      if (!ok) return absl::UnavailableError("bench: a socket broke");
      samples->push_back(
          absl::ToDoubleMicroseconds(RealClock()->Now() - begin));
    }
    return absl::OkStatus();
  }

  absl::Status Grpc(size_t size, int32_t rounds, Samples* samples) {
    for (int32_t i = 0; i < rounds; ++i) {
      std::vector<Buffer> frames;
      for (size_t k = 0; k < grpc_peers_.size(); ++k) {
        std::memset(frames.emplace_back(size).data(), 0, size);
      }
      if (work_ != nullptr) work_->Run();
      const absl::Time begin = RealClock()->Now();
      for (size_t k = 0; k < grpc_peers_.size(); ++k) {
        RETURN_IF_ERROR(
            transport_->Send(static_cast<WorkerId>(k), std::move(frames[k])));
      }
      for (size_t k = 0; k < grpc_peers_.size(); ++k) {
        ASSIGN_OR_RETURN(const transport::Delivery delivery,
                         transport_->Receive(begin + kDeadline));
        RETURN_IF_ERROR(delivery.frame.status());
      }
      samples->push_back(
          absl::ToDoubleMicroseconds(RealClock()->Now() - begin));
    }
    return absl::OkStatus();
  }

 private:
  bool busy_ = false;
  std::vector<std::unique_ptr<EchoPeer>> grpc_peers_, raw_peers_;
  std::vector<std::unique_ptr<RawConnection>> raw_;
  std::unique_ptr<transport::GrpcTransport> transport_;
  std::unique_ptr<BusyWork> work_;
};

absl::Status Measure(Setting* setting, int32_t rounds) {
  std::vector<std::vector<std::string>> table = {{"frame",
                                                  "TCP p50",
                                                  "p90",
                                                  "p99",
                                                  "exchange p50",
                                                  "p90",
                                                  "p99",
                                                  "ratio p50"}};
  double target_ratio = 0;
  for (const size_t size : kSizes) {
    const int32_t count = std::max(
        kRoundsMin, size > limits::kBulkFrameBytes ? rounds / 10 : rounds);
    Samples raw, grpc, warm_up;
    RETURN_IF_ERROR(setting->Raw(size, kTurn, &warm_up));
    RETURN_IF_ERROR(setting->Grpc(size, 2 * kTurn, &warm_up));
    while (static_cast<int32_t>(grpc.size()) < count) {
      RETURN_IF_ERROR(setting->Raw(size, kTurn, &raw));
      RETURN_IF_ERROR(setting->Grpc(size, kTurn, &grpc));
    }
    const double ratio = Quantile(grpc, 0.5) / Quantile(raw, 0.5);
    if (size == kTargetSize) target_ratio = ratio;
    std::vector<std::string> row = {size < 1024
                                        ? absl::StrCat(size, " B")
                                        : absl::StrCat(size >> 10, " KiB")};
    for (const Samples* samples : {&raw, &grpc}) {
      for (const double q : {0.5, 0.9, 0.99}) {
        row.push_back(Fixed(Quantile(*samples, q), 1));
      }
    }
    row.push_back(Fixed(ratio, 2));
    table.push_back(std::move(row));
  }
  std::cout << FormatTable(table) << "8 KiB: " << Fixed(target_ratio, 2)
            << " x raw TCP, the target at rest is " << Fixed(kTargetRatio, 1)
            << "\n\n";
  return absl::OkStatus();
}

int Run(const std::vector<std::string>& /*arguments*/) {
  const auto gpus = ParseGpus(absl::GetFlag(FLAGS_gpus));
  absl::Status status = gpus.status();
  if (status.ok() && gpus->empty()) {
    status = BenchExchange({.rounds = absl::GetFlag(FLAGS_exchange_rounds)});
  } else if (status.ok()) {
    status = BenchGroupExchange(*gpus);
  }
  if (status.ok()) return 0;
  std::cerr << "bench exchange: " << status.message() << "\n";
  return 1;
}

}  // namespace

absl::Status BenchExchange(const BenchExchangeOptions& options) {
  // All processes first: a process with threads cannot be forked.
  ASSIGN_OR_RETURN(Setting rest, Setting::Start(1, false));
  ASSIGN_OR_RETURN(Setting busy, Setting::Start(2, true));
  std::cout << "conclave " << Version() << ", " << MachineName()
            << "\nTime there and back on loopback, microseconds; spin_us "
            << kBenchSpinUs << " on both sides.\n\nOne peer, nothing else:\n";
  RETURN_IF_ERROR(rest.Connect());
  RETURN_IF_ERROR(Measure(&rest, options.rounds));
  std::cout << "Two peers at once, all sides compute between frames on "
            << AvailableCores() << " threads each:\n";
  RETURN_IF_ERROR(busy.Connect());
  return Measure(&busy, options.rounds);
}

Command BenchExchangeCommand() {
  return {.name = "bench exchange",
          .summary = "Time of one exchange: frames, or sums over GPUs.",
          .usage = "bench exchange [--gpus 2]",
          .examples =
              "  conclave bench exchange\n"
              "  conclave bench exchange --exchange-rounds 10000\n"
              "  conclave bench exchange --gpus 2   # NVLink against NCCL\n",
          .flags = {"exchange_rounds", "gpus", "rows"},
          .run = Run};
}

}  // namespace conclave::cli
