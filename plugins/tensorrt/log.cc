#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace mega_deploy {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> g_finder{nullptr};

}  // namespace

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept { g_finder = finder; }

void Log(Severity severity, const char* format, ...) noexcept {
  char line[1024];
  const int prefix = std::snprintf(line, sizeof line, "LaplaceAttention: ");
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line + prefix, sizeof line - prefix, format, arguments);
  va_end(arguments);
  nvinfer1::ILogger* logger = nullptr;
  try {
    nvinfer1::ILoggerFinder* const finder = g_finder;
    if (finder != nullptr) logger = finder->findLogger();
    if (logger != nullptr) return logger->log(severity, line);
  } catch (...) {
  }
  if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", line);
}

}  // namespace mega_deploy
