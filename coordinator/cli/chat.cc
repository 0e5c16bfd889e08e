// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/chat.h"

#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <csignal>
#include <iostream>
#include <optional>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/http_client.h"

ABSL_FLAG(std::string, url, "http://127.0.0.1:8080", "server to talk to");
ABSL_FLAG(std::string, once, "", "one prompt: print the reply and exit");
ABSL_FLAG(bool, check, false, "exit 0 if the server is ready, else 1");
ABSL_FLAG(std::string, system, "", "system message");
ABSL_FLAG(int32_t, max_tokens, 0, "limit of each reply; 0: none");
ABSL_FLAG(double, temperature, -1, "0 is greedy; below 0: the model's default");

namespace conclave::cli {
namespace {

namespace json = boost::json;

constexpr const char* kHelp =
    "/think, /nothink   think before answering, or not (a line of its own)\n"
    "/reset             forget the conversation\n"
    "/quit              leave (or Ctrl-D); Ctrl-C stops a reply\n";

std::atomic<int> interrupts{0};
void OnInterrupt(int) {
  // The second one in a row leaves at once.
  if (++interrupts > 1) _exit(130);
}

class Chat {
 public:
  Chat(std::string url, std::string api_key)
      : url_(std::move(url)),
        api_key_(std::move(api_key)),
        colour_(isatty(STDOUT_FILENO) != 0) {
    Reset();
  }

  void Reset() {
    messages_.clear();
    const std::string system = absl::GetFlag(FLAGS_system);
    if (!system.empty()) Add("system", system);
  }

  void set_thinking(bool on) { thinking_ = on; }

  // The first model that the server names.
  absl::Status FindModel() {
    auto result = Call(Request("GET", "/v1/models"), nullptr);
    if (!result.ok()) return result.status();
    if (result->status != 200) return ErrorOf(*result);
    json::error_code error;
    const json::value value = json::parse(result->body, error);
    const json::value* id =
        error ? nullptr : value.find_pointer("/data/0/id", error);
    if (id == nullptr || !id->is_string()) {
      return absl::InternalError(
          absl::StrCat(url_, "/v1/models: not the expected answer"));
    }
    model_ = std::string(id->get_string());
    return absl::OkStatus();
  }

  // Sends one user message and prints the reply as it comes.
  absl::Status Say(const std::string& text) {
    Add("user", text);
    reply_.clear();
    pending_.clear();
    failure_ = absl::OkStatus();
    in_reasoning_ = false;
    interrupts = 0;
    HttpCall call = Request("POST", "/v1/chat/completions");
    call.body = json::serialize(Body());
    call.stop = [] { return interrupts.load() > 0; };
    auto result = Call(call, [this](std::string_view p) { OnData(p); });
    interrupts = 0;
    Colour("\033[0m");
    if (!reply_.empty() || result.ok()) std::cout << std::endl;
    absl::Status status = result.ok() ? failure_ : result.status();
    if (result.ok() && result->status != 200) status = ErrorOf(*result);
    if (!status.ok()) {
      messages_.pop_back();
      return status;
    }
    Add("assistant", reply_);
    return absl::OkStatus();
  }

 private:
  void Add(const std::string& role, const std::string& content) {
    messages_.push_back(json::object{{"role", role}, {"content", content}});
  }

  HttpCall Request(std::string method, std::string path) const {
    return {.url = url_,
            .path = std::move(path),
            .method = std::move(method),
            .body = {},
            .api_key = api_key_,
            .stop = nullptr};
  }

  json::object Body() const {
    json::object body{
        {"model", model_}, {"messages", messages_}, {"stream", true}};
    if (thinking_) {
      body["chat_template_kwargs"] =
          json::object{{"enable_thinking", *thinking_}};
    }
    const int32_t limit = absl::GetFlag(FLAGS_max_tokens);
    if (limit > 0) body["max_tokens"] = limit;
    const double temperature = absl::GetFlag(FLAGS_temperature);
    if (temperature >= 0) body["temperature"] = temperature;
    return body;
  }

  static absl::Status ErrorOf(const HttpResult& result) {
    json::error_code error;
    const json::value value = json::parse(result.body, error);
    if (!error) {
      const json::value* text = value.find_pointer("/error/message", error);
      if (text != nullptr && text->is_string()) {
        return absl::UnknownError(
            absl::StrCat(result.status, ": ", std::string(text->get_string())));
      }
    }
    return absl::UnknownError(
        absl::StrCat("the server answered ", result.status));
  }

  void OnData(std::string_view piece) {
    pending_.append(piece);
    for (size_t end; (end = pending_.find('\n')) != std::string::npos;) {
      const std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      const std::string data(absl::StripAsciiWhitespace(line));
      if (data.starts_with("data: ") && data != "data: [DONE]") {
        OnEvent(data.substr(6));
      }
    }
    std::cout << std::flush;
  }

  void OnEvent(const std::string& data) {
    json::error_code error;
    const json::value value = json::parse(data, error);
    if (error) return;
    const auto text = [&](const char* path) -> std::string {
      json::error_code missing;
      const json::value* at = value.find_pointer(path, missing);
      return at != nullptr && at->is_string() ? std::string(at->get_string())
                                              : "";
    };
    const std::string failed = text("/error/message");
    if (!failed.empty()) failure_ = absl::UnavailableError(failed);
    PrintReasoning(text("/choices/0/delta/reasoning_content"));
    const std::string content = text("/choices/0/delta/content");
    if (!content.empty() && in_reasoning_) {
      Colour("\033[0m");
      std::cout << "\n\n";
      in_reasoning_ = false;
    }
    std::cout << content;
    reply_ += content;
    const std::string tool =
        text("/choices/0/delta/tool_calls/0/function/name");
    if (!tool.empty()) std::cout << "\n[calls " << tool << "] ";
    std::cout << text("/choices/0/delta/tool_calls/0/function/arguments");
  }

  void PrintReasoning(const std::string& reasoning) {
    if (reasoning.empty()) return;
    if (!in_reasoning_) Colour("\033[2m");
    in_reasoning_ = true;
    std::cout << reasoning;
  }

  void Colour(const char* code) const {
    if (colour_) std::cout << code;
  }

  const std::string url_;
  const std::string api_key_;
  const bool colour_;
  std::string model_;
  json::array messages_;
  std::optional<bool> thinking_;
  std::string reply_;
  std::string pending_;
  bool in_reasoning_ = false;
  absl::Status failure_;
};

// False: leave.
bool HandleLine(Chat& chat, const std::string& line) {
  if (line == "/quit" || line == "/exit") return false;
  if (line == "/help") {
    std::cout << kHelp;
  } else if (line == "/reset") {
    chat.Reset();
    std::cout << "(forgotten)\n";
  } else if (line == "/think" || line == "/nothink" || line == "/no_think") {
    chat.set_thinking(line == "/think");
    std::cout << (line == "/think" ? "(thinking)\n" : "(not thinking)\n");
  } else {
    const absl::Status status = chat.Say(line);
    if (!status.ok()) std::cerr << "error: " << status.message() << "\n";
  }
  return true;
}

int Check(const std::string& url) {
  auto result = Call({.url = url,
                      .path = "/health",
                      .method = "GET",
                      .body = {},
                      .api_key = {},
                      .idle_timeout = absl::Seconds(5),
                      .stop = nullptr},
                     nullptr);
  if (!result.ok()) return Fail("chat", result.status());
  std::cout << result->body << "\n";
  return result->status == 200 ? 0 : 1;
}

int Run(const std::vector<std::string>& arguments) {
  if (!arguments.empty()) {
    return Fail(
        "chat",
        absl::InvalidArgumentError(absl::StrCat("unexpected argument \"",
                                                arguments[0],
                                                "\"; use --once \"PROMPT\"")));
  }
  const std::string url = absl::GetFlag(FLAGS_url);
  if (absl::GetFlag(FLAGS_check)) return Check(url);
  Chat chat(url, absl::GetFlag(FLAGS_api_key));
  const absl::Status found = chat.FindModel();
  if (!found.ok()) return Fail("chat", found);
  std::signal(SIGINT, OnInterrupt);
  const std::string once = absl::GetFlag(FLAGS_once);
  if (!once.empty()) {
    const absl::Status status = chat.Say(once);
    return status.ok() ? 0 : Fail("chat", status);
  }
  const bool tty = isatty(STDIN_FILENO) != 0;
  if (tty) std::cout << "Connected to " << url << ". /help for commands.\n";
  for (std::string line;;) {
    if (tty) std::cout << "> " << std::flush;
    if (!std::getline(std::cin, line)) break;
    line = std::string(absl::StripAsciiWhitespace(line));
    if (!line.empty() && !HandleLine(chat, line)) break;
    interrupts = 0;
  }
  return 0;
}

}  // namespace

Command ChatCommand() {
  return {.name = "chat",
          .summary = "Talk to a running server in the terminal.",
          .usage = "chat [--url URL]",
          .examples =
              "  conclave chat\n"
              "  conclave chat --once \"Tell me a story about a fox.\"\n"
              "  conclave chat --url http://10.0.0.5:8080 "
              "--api-key KEY\n",
          .flags = {"url",
                    "once",
                    "check",
                    "system",
                    "max_tokens",
                    "temperature",
                    "api_key"},
          .run = Run};
}

}  // namespace conclave::cli
