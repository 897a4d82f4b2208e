package bench

import (
	"fmt"
	"strconv"
	"time"
)

// formatLatency is a latency in three digits: 123 µs, 1.23 ms, 12.3 ms, 1.23 s.
func formatLatency(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return threeDigits(float64(d)/float64(time.Millisecond)) + " ms"
	default:
		return threeDigits(d.Seconds()) + " s"
	}
}

func threeDigits(x float64) string {
	switch {
	case x < 9.995:
		return fmt.Sprintf("%.2f", x)
	case x < 99.95:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.0f", x)
	}
}

// formatCount is a whole number in groups of three: 12 345.
func formatCount(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + " " + digits[i:]
	}
	return digits
}

// formatRate is a number per second, without its unit.
func formatRate(x float64) string {
	if x >= 1000 {
		return formatCount(int64(x + 0.5))
	}
	return threeDigits(x)
}
