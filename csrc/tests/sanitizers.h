// Which sanitizer a test is compiled for; compilers say it in two ways.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define PTRAIN_ADDRESS_SANITIZER 1
#elif defined(__SANITIZE_THREAD__)
#define PTRAIN_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PTRAIN_ADDRESS_SANITIZER 1
#elif __has_feature(thread_sanitizer)
#define PTRAIN_THREAD_SANITIZER 1
#endif
#endif
