//! Harness: throwaway servers, cgroups and daemons for the tests beside it.
