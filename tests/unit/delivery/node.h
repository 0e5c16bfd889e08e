// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/delivery/slice_bytes.h"
#include "common/delivery/storage_proto.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_exchange_server.h"
#include "coordinator/delivery/supply.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "worker/expert_store.h"
#include "worker/peer_service.h"

namespace conclave::testing {

// One worker's store behind a port, as Worker has it, with a hook before each
// call that may bend the request or answer in its place.
class Node {
 public:
  using Hook =
      std::function<absl::Status(const std::string& method, std::string*)>;

  explicit Node(const std::string& name,
                worker::ExpertStore::Options options = Fetching(),
                const std::string& cache_folder = "")
      : cache_(OpenCache(cache_folder)),
        store(WithCache(std::move(options), cache_.get())),
        peers_(name, &store),
        exchange_({.spin_us = 0,
                   .handler = [](auto) { return Buffer(); },
                   .control =
                       [this](const std::string& method,
                              std::string request,
                              transport::Responder respond) {
                         Answer(method, std::move(request), std::move(respond));
                       }}) {
    grpc::ServerBuilder builder;
    transport::ConfigureServer(&builder);
    builder.AddListeningPort(
        "127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    exchange_.Register(&builder);
    server_ = builder.BuildAndStart();
    exchange_.Start();
  }
  ~Node() {
    store.Stop();
    server_->Shutdown(absl::ToChronoTime(RealClock()->Now()));
    exchange_.Stop();
  }

  // No checkpoint here; asks peers.
  static worker::ExpertStore::Options Fetching() {
    worker::ExpertStore::Options options;
    options.model = "off";
    options.dial = [](const std::string& address) { return Dial(address); };
    return options;
  }
  static std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
    return transport::Dial(address, {}, transport::Traffic::kBulk);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  delivery::SliceCache* cache() { return cache_.get(); }

  void SetHook(Hook hook) {
    const std::lock_guard<std::mutex> lock(mu_);
    hook_ = std::move(hook);
  }

  // Lets the coordinator's supply load this; `last` is the last progress.
  absl::Status Load(delivery::Supply* supply,
                    v1::AssignRequest request,
                    v1::LoadProgress* last) {
    const absl::Status described = supply->Describe(&request);
    if (!described.ok()) return described;
    const auto session =
        supply->Open(request, "w (test)", Dial(address()), absl::Seconds(20));
    return store.Assign(request, [&](const v1::LoadProgress& news) {
      *last = news;
      session->Add(news);
    });
  }

 private:
  static std::unique_ptr<delivery::SliceCache> OpenCache(
      const std::string& folder) {
    if (folder.empty()) return nullptr;
    auto cache = delivery::SliceCache::Open(folder, 0);
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }
  static worker::ExpertStore::Options WithCache(
      worker::ExpertStore::Options options, delivery::SliceCache* cache) {
    if (cache != nullptr) options.cache = cache;
    return options;
  }

  void Answer(const std::string& method,
              std::string request,
              transport::Responder respond) {
    Hook hook;
    {
      const std::lock_guard<std::mutex> lock(mu_);
      hook = hook_;
    }
    if (hook != nullptr) {
      if (const absl::Status s = hook(method, &request); !s.ok()) {
        return respond.finish(s);
      }
    }
    if (method.ends_with("/Deliver")) {
      return store.inbox()->Deliver(std::move(request), std::move(respond));
    }
    peers_.Handle(method, std::move(request), std::move(respond));
  }

  const std::unique_ptr<delivery::SliceCache> cache_;

 public:
  worker::ExpertStore store;

 private:
  worker::PeerService peers_;
  transport::GrpcExchangeServer exchange_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::mutex mu_;
  Hook hook_;  // guarded by mu_
};

// Experts [begin, end) of every layer as shard `id` of an assignment.
inline void AddShard(const checkpoint::Checkpoint& checkpoint,
                     int32_t id,
                     int32_t begin,
                     int32_t end,
                     v1::AssignRequest* request) {
  const checkpoint::ModelConfig& config = checkpoint.config();
  request->set_config_hash(absl::HexStringToBytes(config.config_sha256));
  v1::ShardAssignment* shard = request->add_shards();
  shard->set_shard(id);
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (int32_t expert = begin; expert < end; ++expert) {
      v1::SliceAssignment* slice = shard->add_slices();
      slice->set_layer(layer);
      slice->set_expert(expert);
      slice->set_end(config.moe_intermediate_size);
    }
  }
}

// Every byte that the store holds in host memory against the checkpoint.
inline void ExpectHolds(const worker::ExpertStore& store,
                        const checkpoint::Checkpoint& checkpoint) {
  const auto assignment = store.current();
  ASSERT_NE(assignment, nullptr);
  for (const auto& [id, held] : assignment->held) {
    for (size_t i = 0; i < held->layouts.size(); ++i) {
      if (!held->InHostMemory(i)) continue;
      const Slice& slice = held->weights.shard.slices[i];
      Buffer expected(held->layouts[i].bytes()), is(expected.size());
      ASSERT_TRUE(checkpoint::ReadSlice(
                      checkpoint,
                      slice,
                      held->layouts[i],
                      delivery::SpansOver(expected.bytes(), held->layouts[i]))
                      .ok());
      delivery::CopyOut(held->weights.Part(i), 0, is.bytes());
      EXPECT_EQ(std::memcmp(is.data(), expected.data(), is.size()), 0)
          << ToString(slice);
    }
  }
}

}  // namespace conclave::testing
