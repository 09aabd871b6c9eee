package bytesize

import "testing"

func TestParse(t *testing.T) {
	for in, want := range map[string]Size{"0": 0, "512": 512, "1KiB": 1024, "100 MiB": 100 << 20, "2GB": 2e9} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1", "1.5GiB", "MiB", "9999999999TiB", "1QiB"} {
		if got, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %d, want an error", in, got)
		}
	}
	if s := (100 * MiB).String(); s != "100MiB" {
		t.Errorf("String = %s", s)
	}
}
