package fleet

// FirstMatches tries conditions one after the other, and returns the elements that
// match the first condition which any element matches. So a full name is preferred
// to a prefix of several names.
func FirstMatches[T any](list []T, conditions ...func(T) bool) (found []T) {
	for _, matches := range conditions {
		for _, e := range list {
			if matches(e) {
				found = append(found, e)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	return found
}
