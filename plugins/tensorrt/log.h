// Messages through the logger that TensorRT hands to plugin libraries, or to stderr where there is none.
#pragma once

#include <NvInferRuntime.h>

namespace mega_deploy {

using Severity = nvinfer1::ILogger::Severity;

// Called by TensorRT when it loads the library.
void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

// One line, as printf formats it; without a logger only errors and warnings are written.
void Log(Severity severity, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

}  // namespace mega_deploy

#define MEGA_DEPLOY_ERROR(...) ::mega_deploy::Log(::mega_deploy::Severity::kERROR, __VA_ARGS__)
