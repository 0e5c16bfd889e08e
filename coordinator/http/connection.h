// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/ssl/context.hpp"
#include "coordinator/http/message.h"
#include "coordinator/http/server.h"

namespace conclave::http {

// What the connections of one server share.
struct ConnectionShared {
  ServerOptions options;
  Handler handler;
  boost::asio::ssl::context* tls = nullptr;  // null: plain TCP

  // A std::mutex, because the thread sanitizer sees through it and not through
  // a distribution's absl::Mutex. Guards all below.
  std::mutex mutex;
  std::condition_variable all_closed;
  uint64_t next_key = 0;
  bool stopping = false;
  // Ends a connection: politely, or (true) at once. From any thread.
  std::map<uint64_t, std::function<void(bool)>> open;
};

// Takes over an accepted socket whose executor is a strand. The connection
// keeps itself alive until it is closed. Turns away when there are too many.
void StartConnection(boost::asio::ip::tcp::socket socket,
                     const std::shared_ptr<ConnectionShared>& shared);

}  // namespace conclave::http
