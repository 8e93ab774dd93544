package demo

// invite shows what to try with curl. The commands need nothing but a POSIX shell,
// curl and sed.
func (t *Transcript) invite(url string) {
	t.line("The service runs at %s. Its log follows here. In another terminal:", url)
	t.command("Log in, as a user of each tenant:",
		"api="+url,
		`login() { curl -s $api/v1/auth/login -d "$1" | sed 's/.*"access_token":"\([^"]*\)".*/\1/'; }`,
		`north=$(login '{"email":"cashier@north.example","password":"fake-password-north"}')`,
		`south=$(login '{"email":"cashier@south.example","password":"fake-password-south"}')`,
		`order='{"reference":"inv-1","payee":"printer","amount":1250,"currency":"EUR"}'`,
		`pay() { curl -si $api/v1/payments -H "Authorization: Bearer $1" -H "Idempotency-Key: $2" -d "$3"; }`)
	t.command("Make a payment, and then the same again, which is a replay:",
		`pay "$north" order-1 "$order"`,
		`pay "$north" order-1 "$order"`)
	t.command("The same key of the other tenant, which is another payment:",
		`pay "$south" order-1 "$order"`)
	t.command("The same key for another order, which is refused:",
		`pay "$north" order-1 '{"reference":"inv-2","payee":"printer","amount":99,"currency":"EUR"}'`)
	t.command("What each tenant has:",
		`curl -s $api/v1/payments -H "Authorization: Bearer $north"`,
		`curl -s $api/v1/payments -H "Authorization: Bearer $south"`)
	t.line("\nCtrl-C stops the service and cleans up.\n")
}

func (t *Transcript) command(title string, lines ...string) {
	t.line("\n%s\n", t.paint(bold, title))
	for _, line := range lines {
		t.line("  %s", line)
	}
}
