// This file lets handover.go declare a function without a body.
