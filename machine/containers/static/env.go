package static

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxEnv is the size of a file with environment variables, in bytes.
const maxEnv = 64 << 10

// ReadEnv reads the variables of a file; without a name there are none.
func ReadEnv(name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEnv+1))
	if err != nil {
		return nil, err
	}
	list, err := parseEnv(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

// parseEnv reads lines KEY=VALUE. Empty ones and those that begin with # say
// nothing; quotes around a value are not part of it.
func parseEnv(data []byte) ([]string, error) {
	if len(data) > maxEnv {
		return nil, fmt.Errorf("more than %d bytes", maxEnv)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, fmt.Errorf("a zero byte, want lines KEY=VALUE")
	}
	var list []string
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || key == "" || strings.ContainsAny(key, " \t") {
			return nil, fmt.Errorf("line %d: want KEY=VALUE", number) // what it says may be secret
		}
		value = strings.TrimSpace(value)
		if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'') {
			value = value[1 : n-1]
		}
		list = append(list, key+"="+value)
	}
	return list, nil
}
