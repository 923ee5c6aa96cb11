package doctor

import (
	"strconv"
	"strings"
	"unicode"
)

// Names of mounts and processes are given by others: they may hold anything,
// also what a terminal obeys or a shell runs.

// Printable returns s with everything that is not plain text escaped.
func Printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// quote returns s as one word for a shell.
func quote(s string) string {
	switch {
	case safeWord(s):
		return s
	case Printable(s) == s:
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for _, c := range []byte(s) {
		if c < 0x20 || c >= 0x7f || c == '\'' || c == '\\' {
			b.WriteString(`\` + octalDigits(c))
		} else {
			b.WriteByte(c)
		}
	}
	return b.String() + "'"
}

func octalDigits(c byte) string { return string([]byte{'0' + c>>6, '0' + c>>3&7, '0' + c&7}) }

// safeWord reports whether s means itself, in a shell and as a file name.
func safeWord(s string) bool {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,="
	return s != "" && s[0] != '-' && strings.Trim(s, safe) == "" && !strings.Contains(s, "..")
}
