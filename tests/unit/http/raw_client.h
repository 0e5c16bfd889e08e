// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/socket.h>
#include <sys/time.h>

#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/read.hpp"
#include "boost/asio/read_until.hpp"
#include "boost/asio/write.hpp"

namespace conclave::http {

namespace asio = boost::asio;

// A client that speaks bytes; no read waits longer than 20 s.
class Client {
 public:
  explicit Client(int port) : socket_(io_) {
    socket_.connect(
        {asio::ip::address_v4::loopback(), static_cast<unsigned short>(port)});
    timeval timeout{.tv_sec = 20, .tv_usec = 0};
    setsockopt(socket_.native_handle(),
               SOL_SOCKET,
               SO_RCVTIMEO,
               &timeout,
               sizeof(timeout));
  }
  void Send(const std::string& bytes) {
    boost::system::error_code ignored;
    asio::write(socket_, asio::buffer(bytes), ignored);
  }
  void Post(const std::string& path,
            const std::string& body,
            const std::string& headers = "") {
    Send(absl::StrCat("POST ",
                      path,
                      " HTTP/1.1\r\nHost: x\r\nContent-Length: ",
                      body.size(),
                      "\r\n",
                      headers,
                      "\r\n",
                      body));
  }
  void Get(const std::string& path, const std::string& headers = "") {
    Send(absl::StrCat(
        "GET ", path, " HTTP/1.1\r\nHost: x\r\n", headers, "\r\n"));
  }
  // Up to and with the text, or all until the end of the connection.
  std::string ReadUntil(const std::string& text) {
    boost::system::error_code error;
    const size_t end =
        asio::read_until(socket_, asio::dynamic_buffer(buffer_), text, error);
    if (error) return std::exchange(buffer_, "");
    std::string out = buffer_.substr(0, end);
    buffer_.erase(0, end);
    return out;
  }
  // One response with a Content-Length.
  std::string ReadResponse() {
    std::string head = ReadUntil("\r\n\r\n");
    const size_t at = head.find("Content-Length: ");
    if (at == std::string::npos) return head;
    const size_t length = std::stoul(head.substr(at + 16));
    if (buffer_.size() < length) {
      boost::system::error_code ignored;
      asio::read(socket_,
                 asio::dynamic_buffer(buffer_),
                 asio::transfer_exactly(length - buffer_.size()),
                 ignored);
    }
    head += buffer_.substr(0, length);
    buffer_.erase(0, length);
    return head;
  }
  void Close() { socket_.close(); }

 private:
  asio::io_context io_;
  asio::ip::tcp::socket socket_;
  std::string buffer_;
};

}  // namespace conclave::http
